"""What the actors of a stage ask Ray for besides their custom resource, and how long they may wait for a machine.

It says where Ray is rather than what the stage computes, so it travels in an environment variable and not in the
stage's configuration, whose hash decides what may be continued. Imports nothing heavy.
"""

import math
import os
from typing import Self

from pydantic import Field, ValidationError

from gripline.cluster_config import ClusterConfig
from gripline.errors import UserError
from gripline.section import Section

VARIABLE = "GRIPLINE_RAY_SHARES"


class Shares(Section):
    """The default is one machine that is there from the start, on which nobody counts GPUs."""

    env_gpus: float = Field(default=0.0, ge=0)
    """Of an env worker. Ray takes parts of one GPU, or whole ones."""
    policy_gpus: float = Field(default=0.0, ge=0)
    """Of a policy server."""
    learner_gpus: float = Field(default=0.0, ge=0)
    nodes_timeout_s: float = Field(default=0.0, ge=0)
    """How long actors may wait for a machine when nothing can run without them. Above 0, a rollout begins with the
    machines that are there and takes in the others as they come. 0: all must be there at the start."""

    @classmethod
    def of(cls, cluster: ClusterConfig) -> Self:
        """How the pods' GPUs are dealt out to the processes in them."""
        policy, env = cluster.policy, cluster.env
        return cls(
            env_gpus=ray_gpus(env.gpus / env.workers_per_pod),
            policy_gpus=ray_gpus((policy.gpus - policy.learner_gpus) / policy.servers_per_pod),
            learner_gpus=ray_gpus(policy.learner_gpus),
            nodes_timeout_s=cluster.start_timeout_s,
        )

    @classmethod
    def given(cls) -> Self:
        """Those of this process's environment. Raises UserError if they cannot be read."""
        text = os.environ.get(VARIABLE)
        try:
            return cls() if text is None else cls.model_validate_json(text)
        except ValidationError as error:
            problem = f"cannot be read: {error.errors()[0]['msg']}"
            raise UserError(VARIABLE, "", problem, 'unset it, or write {"policy_gpus": 0.5}') from error


def ray_gpus(share: float) -> float:
    """The next lower share that Ray accepts: it counts in 1/10,000 below one GPU, and in whole ones above."""
    return float(math.floor(share)) if share > 1 else math.floor(share * 10_000 + 1e-6) / 10_000

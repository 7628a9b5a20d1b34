"""The simulators and the policy that the stages run; what actors call to build them. Importing this loads neither."""

import os

from gripline.config import EnvConfig
from gripline.envs import make_env, prepare
from gripline.rollout.messages import ServedPolicy
from gripline.store import fetch
from gripline.types import Env


def make_env_with(config: EnvConfig, renderer: dict[str, str] | None) -> Env:
    """The environment that a configuration names, drawn in the same way in every process.

    renderer: environment variables, from `gripline.envs.prepare`; None: settle that here, once per process.
    Raises UserError as `gripline.envs.make_env` does.
    """
    os.environ |= prepare(config) if renderer is None else renderer
    return make_env(config)


def make_served_policy(uri: str) -> ServedPolicy:
    """The policy of a checkpoint, on the GPU where there is one. Raises UserError for a broken checkpoint."""
    import torch

    from gripline.policies import load_policy
    from gripline.policies.inference import make_policy

    torch.set_num_threads(1)  # bit-equal batches need that, and the other cores are the simulators'
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return make_policy(load_policy(fetch(uri), device=device))

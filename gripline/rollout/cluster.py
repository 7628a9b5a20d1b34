"""Where Ray is: the cluster that the user has, or one on this machine for as long as it is needed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from gripline import threads
from gripline.config import RolloutConfig
from gripline.errors import UserError

START_TRIES = 3
OBJECT_STORE_BYTES = 512 * 2**20
"""On this machine; an iteration's trajectories take some 20 MB."""


@contextmanager
def ray_cluster(config: RolloutConfig, *, learners: int = 0) -> Iterator[None]:
    """A Ray cluster for as long as the block runs: the one that this process or `RAY_ADDRESS` already has, or a new one
    on this machine with room for the actors asked for.

    Actors ask for the custom resources 'env', 'policy' and 'learner', which a cluster's worker groups advertise. Only a
    cluster that was started here is stopped at the end. Raises UserError for a cluster without enough of them.
    """
    joined = not ray.is_initialized()
    if joined and "RAY_ADDRESS" in os.environ:
        ray.init(logging_level="error", log_to_driver=False)
    elif joined:
        start_local_cluster(config)
    try:
        _check_resources({"env": config.env_workers, "policy": config.policy_replicas, "learner": learners})
        yield
    finally:
        if joined:
            ray.shutdown()


def start_local_cluster(config: RolloutConfig) -> str:
    """Start Ray on this machine and connect to it; returns the address at which other processes join.

    It has room for the rollout's actors and one learner, and ends with this process, or with `ray.shutdown()`.
    """
    threads.set_defaults()  # Ray's processes inherit them
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for tries_left in range(START_TRIES - 1, -1, -1):
        try:
            ray.init(
                address="local",
                num_cpus=os.cpu_count(),
                resources={"env": config.env_workers, "policy": config.policy_replicas, "learner": 1},
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                logging_level="error",
            )
            break
        except Exception:
            # Ray raises no narrower class when its processes need more than its fixed 30 s, on a busy laptop.
            ray.shutdown()
            if not tries_left:
                raise
    address: str = ray.get_runtime_context().gcs_address
    return address


def _check_resources(needed: dict[str, int]) -> None:
    total = ray.cluster_resources()
    missing = [
        f"{total.get(name, 0):g} of {number} {name!r}" for name, number in needed.items() if total.get(name, 0) < number
    ]
    if missing:
        raise UserError(
            "Ray cluster",
            "resources",
            f"has only {', '.join(missing)}",
            "start nodes that advertise them (ray start --resources), or lower rollout.env_workers or "
            "rollout.policy_replicas",
        )

"""Where Ray is: the cluster that the user has, or one on this machine for as long as it is needed."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from gripline import progress, stopping, threads
from gripline.config import RolloutConfig
from gripline.errors import UserError
from gripline.rollout.shares import Shares

START_TRIES = 3
NODES_POLL_S = 1.0
OBJECT_STORE_BYTES = 512 * 2**20
"""On this machine; an iteration's trajectories take some 20 MB."""


@contextmanager
def ray_cluster(config: RolloutConfig, *, learners: int = 0) -> Iterator[None]:
    """A Ray cluster for as long as the block runs: the one that this process or `RAY_ADDRESS` already has, or a new one
    on this machine with room for the actors asked for. (Ray itself sets `RAY_ADDRESS` for the driver of a job that was
    submitted to it.)

    Actors ask for the custom resources 'env', 'policy' and 'learner', which a cluster's worker groups advertise. Only a
    cluster that was started here is stopped at the end. Raises UserError for a cluster without enough of them; where
    machines come and go (`Shares.nodes_timeout_s`), only if there is none for any of them for so long.
    """
    joined = not ray.is_initialized()
    if joined and "RAY_ADDRESS" in os.environ:
        ray.init(logging_level="error", log_to_driver=False)
    elif joined:
        start_local_cluster(config)
    try:
        _check_resources(config, learners, Shares.given())
        yield
    finally:
        if joined:
            ray.shutdown()


def simulators_run_here() -> bool:
    """Is this the machine that all env workers will run on?"""
    here = ray.get_runtime_context().get_node_id()
    hosts = {node["NodeID"] for node in ray.nodes() if node["Alive"] and "env" in node["Resources"]}
    return hosts <= {here}


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
        except Exception:  # raised again after the last try
            # Ray raises no narrower class when its processes need more than its fixed 30 s, on a busy laptop.
            ray.shutdown()
            if not tries_left:
                raise
    address: str = ray.get_runtime_context().gcs_address
    return address


def _check_resources(config: RolloutConfig, learners: int, shares: Shares) -> None:
    numbers = {"env": config.env_workers, "policy": config.policy_replicas, "learner": learners}
    if shares.nodes_timeout_s > 0:  # one of each is enough to begin
        numbers = {name: min(number, 1) for name, number in numbers.items()}
    gpus = {"env": shares.env_gpus, "policy": shares.policy_gpus, "learner": shares.learner_gpus}
    needed = numbers | {"GPU": sum(number * gpus[name] for name, number in numbers.items())}
    until_s = time.monotonic() + shares.nodes_timeout_s
    told = ""
    while missing := _missing(needed):
        if time.monotonic() >= until_s:
            raise UserError(
                "Ray cluster",
                "resources",
                f"has only {missing}",
                "start nodes that advertise them (ray start --resources), or lower rollout.env_workers or "
                "rollout.policy_replicas",
            )
        stopping.check()
        if missing != told:
            told = missing
            progress.emit("ray", "note", text=f"waiting for pods: {missing}")
        time.sleep(NODES_POLL_S)


def _missing(needed: Mapping[str, float]) -> str:
    total = ray.cluster_resources()
    short = [(name, number) for name, number in needed.items() if total.get(name, 0) < number]
    return ", ".join(f"{total.get(name, 0):g} of {number:g} {name!r}" for name, number in short)

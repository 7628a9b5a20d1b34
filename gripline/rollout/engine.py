"""The driver's side of a rollout: keeps every slot of every environment worker busy and hands out episodes as they end.

The driver sees a spec going out and a small record coming back; trajectories stay in Ray's object store as references.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from gripline import threads
from gripline.config import EnvConfig
from gripline.envs import prepare
from gripline.rollout.actors import Decoding, EnvWorker, EpisodeStats, PolicyFailedError, PolicyServer
from gripline.rollout.stats import RolloutStats
from gripline.types import EpisodeRecord, EpisodeSpec

MAX_TRIES = 3
ACTOR_START_TIMEOUT_S = 300.0
START_TRIES = 3
OBJECT_STORE_BYTES = 512 * 2**20
"""On this machine; an iteration's trajectories take some 20 MB."""
EPISODE_TIMEOUT_S = 600.0
"""If no episode at all ends for so long, something hangs."""


@dataclass(frozen=True)
class Finished:
    """One episode that ended. `trajectory` is an object reference (None if it was not kept or the simulator failed)."""

    index: int
    """Position of the spec in the list that was given."""
    record: EpisodeRecord
    stats: EpisodeStats
    trajectory: Any


@dataclass(frozen=True)
class _Running:
    """An episode that a worker is busy with."""

    index: int
    worker_index: int
    worker: Any
    trajectory: Any


@contextmanager
def ray_cluster(*, num_env_workers: int) -> Iterator[None]:
    """A Ray cluster for as long as the block runs: the one that this process or `RAY_ADDRESS` already has, or a new one
    on this machine with room for the actors asked for.

    Actors ask for the custom resources 'env', 'policy' and 'learner', which a cluster's worker groups advertise. Only a
    cluster that was started here is stopped at the end.
    """
    if ray.is_initialized():
        yield
        return
    if "RAY_ADDRESS" in os.environ:
        ray.init(logging_level="error", log_to_driver=False)
    else:
        start_local_cluster(num_env_workers=num_env_workers)
    try:
        yield
    finally:
        ray.shutdown()


def start_local_cluster(*, num_env_workers: int) -> str:
    """Start Ray on this machine and connect to it; returns the address at which other processes join.

    It ends with this process, or with `ray.shutdown()`.
    """
    threads.set_defaults()  # Ray's processes inherit them
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for tries_left in range(START_TRIES - 1, -1, -1):
        try:
            ray.init(
                address="local",
                num_cpus=os.cpu_count(),
                resources={"env": num_env_workers, "policy": 1, "learner": 1},
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


class RolloutEngine:
    """Environment workers and a policy server, ready to run lists of episodes; needs a Ray cluster (`ray_cluster`)."""

    def __init__(self, env: EnvConfig, policy_dir: str, *, num_workers: int, slots_per_worker: int) -> None:
        self._env = env
        self._renderer = prepare(env)
        self._slots = slots_per_worker
        self.num_workers = num_workers
        server = ray.remote(num_cpus=0, resources={"policy": 1}, max_concurrency=1000)(PolicyServer)
        self.policy = server.remote(policy_dir)
        self._workers = [self._start_worker() for _ in range(num_workers)]
        started = [self.policy.ready.remote(), *(worker.warm_up.remote(env.tasks) for worker in self._workers)]
        ray.get(started, timeout=ACTOR_START_TIMEOUT_S)
        self.last = RolloutStats()

    def _start_worker(self) -> Any:
        worker = ray.remote(num_cpus=0, resources={"env": 1}, max_concurrency=self._slots + 1)(EnvWorker)
        return worker.remote(self._env, self.policy, self._slots, self._renderer)

    def set_weights(self, weights: Any) -> None:
        """Weights by name (numpy arrays, or a reference to them) for every later episode."""
        ray.get(self.policy.set_weights.remote(weights))

    def run(self, specs: list[EpisodeSpec], decoding: Decoding) -> Iterator[Finished]:
        """Run every spec exactly once and yield each as it ends, in no particular order.

        An episode whose simulator or worker fails goes to the end of the line; after the last try it is recorded as an
        infra error with the original message. If nothing at all ends for long, workers that hang are replaced.
        """
        started = time.perf_counter()
        self.last = RolloutStats()
        ray.get(self.policy.take_counters.remote())
        waiting = list(range(len(specs)))[::-1]
        last_dispatch = started
        tries = [0] * len(specs)
        running: dict[Any, _Running] = {}
        for worker_index in list(range(self.num_workers)) * self._slots:
            if waiting:
                self._dispatch(worker_index, waiting.pop(), specs, decoding, running)
        while running:
            done_refs, _ = ray.wait(list(running), num_returns=1, timeout=EPISODE_TIMEOUT_S)
            if not done_refs:  # a simulator hangs: its worker is replaced like one that died
                for hung in {id(episode.worker): episode.worker for episode in running.values()}.values():
                    ray.kill(hung)
                continue
            episode = running.pop(done_refs[0])
            finished = self._collect(done_refs[0], specs[episode.index], episode)
            if finished.record.error and tries[episode.index] + 1 < MAX_TRIES:
                tries[episode.index] += 1
                self.last.retries += 1
                waiting.insert(0, episode.index)  # behind the others: not with the same neighbours again
            else:
                self._count(finished)
                yield finished
            if waiting:
                self._dispatch(episode.worker_index, waiting.pop(), specs, decoding, running)
                last_dispatch = time.perf_counter()
        self.last.wall_s = time.perf_counter() - started
        self.last.tail_s = time.perf_counter() - last_dispatch
        self.last.policy_busy_s, _ = ray.get(self.policy.take_counters.remote())

    def _dispatch(
        self, worker_index: int, index: int, specs: list[EpisodeSpec], decoding: Decoding, running: dict[Any, _Running]
    ) -> None:
        worker = self._workers[worker_index]
        row, trajectory = worker.run_episode.options(num_returns=2).remote(specs[index], decoding)
        running[row] = _Running(index, worker_index, worker, trajectory if decoding.keep_trajectory else None)

    def _collect(self, done: Any, spec: EpisodeSpec, episode: _Running) -> Finished:
        try:
            record, stats = ray.get(done)
            return Finished(episode.index, record, stats, episode.trajectory)
        except ray.exceptions.RayActorError as error:
            if self._workers[episode.worker_index] is episode.worker:  # its other episodes find a new one in place
                self._workers[episode.worker_index] = self._start_worker()
            reason = f"environment worker died: {error}"
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, PolicyFailedError):
                raise RuntimeError(f"the policy server failed: {error.cause}") from error
            reason = f"{type(error.cause).__name__}: {error.cause}"
        record = EpisodeRecord(
            spec=spec, success=False, num_steps=0, num_chunks=0, error=" ".join(reason.split())[:500]
        )
        return Finished(episode.index, record, EpisodeStats(0.0, 0.0, 0.0), None)

    def _count(self, finished: Finished) -> None:
        self.last.episodes += 1
        self.last.env_steps += finished.record.num_steps
        self.last.reset_s += finished.stats.reset_s
        self.last.step_s += finished.stats.step_s

    def __enter__(self) -> "RolloutEngine":
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the actors; the Ray cluster itself stays for whoever started it."""
        for actor in [*self._workers, self.policy]:
            ray.kill(actor)

"""Running lists of episodes: the schedule decides, env workers and policy servers do, and this carries in between.

The driver sees a spec going out and a small row coming back; trajectories stay in Ray's object store as references.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from gripline.config import EnvConfig, RolloutConfig
from gripline.envs import prepare
from gripline.errors import UserError
from gripline.rollout.cluster import simulators_run_here
from gripline.rollout.events import Event, Hangs, Joined, Lost, Raised, ReplicaLost, Returned
from gripline.rollout.fleet import Fleet
from gripline.rollout.messages import Decoding, Row, ServedPolicy
from gripline.rollout.schedule import Action, Cancel, Drop, GiveUp, Replace, ReplaceReplica, Schedule, Start, Stop
from gripline.rollout.standard import make_env_with, make_served_policy
from gripline.rollout.stats import RolloutStats
from gripline.rollout.trace import TraceEvent
from gripline.types import Env, EpisodeRecord, EpisodeSpec

CANCELLED = "cancelled"


@dataclass(frozen=True)
class Finished:
    """One episode that ended. `trajectory` is an object reference; None if it was not kept or there is none."""

    index: int
    """Position of the spec in what was given."""
    record: EpisodeRecord
    """Its `error` is not empty where the simulator failed, and where the episode was cancelled."""
    trajectory: Any
    cancelled: bool = False
    """Ended early, or never started, because it had become useless."""
    node: str = ""
    """The machine that it ran on, and in whose memory the trajectory lies."""


class RolloutEngine:
    """Env workers and policy servers, ready to run episodes; needs a Ray cluster (`ray_cluster`)."""

    def __init__(
        self,
        make_env: Callable[[], Env],
        make_policy: Callable[[], ServedPolicy],
        config: RolloutConfig,
        *,
        warm_up: list[EpisodeSpec],
    ) -> None:
        """make_env, make_policy: are called in the workers and policy servers; must survive the trip there.

        warm_up: specs that every worker resets its simulators to before the first episode. Raises UserError where
        `config.reset_timeout_s` is shorter than such a reset takes.
        """
        self._config = config
        self._fleet = Fleet(make_env, make_policy, config, warm_up)
        self._unfinished: _Run | None = None
        self.last = RolloutStats()
        """What the latest rollout cost; complete when its iterator is used up."""
        self.record_trace = False
        """Whether the next rollouts are recorded."""
        self.trace: list[TraceEvent] = []
        """All recorded rollouts since whoever reads it last emptied it."""

    def set_weights(self, weights: Any) -> None:
        """Weights by name (numpy arrays, or a reference to them) for every later episode."""
        self._fleet.set_weights(weights)

    def without_trajectory(self, episodes: Iterable[Finished]) -> list[Finished]:
        """Those whose trajectory is gone, with the machine that they ran on. Their specs can be run again."""
        held = [episode for episode in episodes if episode.trajectory is not None]
        gone = self._fleet.gone_of({episode.node for episode in held})
        return [episode for episode in held if episode.node in gone]

    def run(
        self,
        specs: Iterable[EpisodeSpec],
        decoding: Decoding,
        *,
        useless: Callable[[Finished], set[int]] | None = None,
    ) -> Iterator[Finished]:
        """Run every spec exactly once and yield each as it ends, in no particular order.

        specs: read as far as there are free slots, so they may be drawn while others run. useless: is told of every
        episode that ends and names those that can certainly not be used any more; they end as cancelled. An episode
        whose simulator fails, or whose worker is lost, is run again; after the last try it is recorded as an error of
        the infrastructure. Raises UserError when the fault budget is spent, and RuntimeError when the policy fails.
        """
        if self._unfinished is not None:  # the caller of the last rollout did not want to see its end
            self._unfinished.abandon()
        self._fleet.take_counters()
        recorded = self.record_trace
        if recorded:
            self._fleet.set_tracing(True)
        self._unfinished = run = _Run(self._fleet, iter(specs), decoding, useless or _none, self._config)
        self.last = run.stats
        yield from run.episodes()
        self._unfinished = None
        run.close_books()
        if recorded:
            self.trace += self._fleet.take_trace()
            self._fleet.set_tracing(False)

    def __enter__(self) -> "RolloutEngine":
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the actors; the Ray cluster itself stays for whoever started it."""
        self._fleet.close()


class _Run:
    """One rollout: the schedule, the specs and references of what runs, and what it cost."""

    def __init__(
        self,
        fleet: Fleet,
        specs: Iterator[EpisodeSpec],
        decoding: Decoding,
        useless: Callable[[Finished], set[int]],
        config: RolloutConfig,
    ) -> None:
        self._fleet, self._specs, self._decoding, self._config = fleet, specs, decoding, config
        self._useless = useless
        self._schedule = Schedule(max_tries=config.max_tries, fault_budget=config.fault_budget)
        self._open: dict[int, EpisodeSpec] = {}
        self._num_drawn = 0
        self._all_drawn = False
        self._trajectories: dict[int, Any] = {}
        self._nodes: dict[int, str] = {}
        """On which machine each episode runs."""
        self._ended: deque[Finished] = deque()
        self._started_s = self._last_start_s = time.perf_counter()
        self.stats = RolloutStats()
        for worker in fleet.ready_workers:
            self._do(self._join(worker))

    def episodes(self) -> Iterator[Finished]:
        """Every episode as it ends. Its slot is filled again before the caller gets it."""
        finished: list[Finished] = []
        while True:
            while self._ended:
                finished.append(self._ended.popleft())
                self._cancel(self._useless(finished[-1]))
            self._draw()
            if not self._ended:
                yield from finished
                finished = []
                if self._all_drawn and not self._schedule.num_open:
                    return
                self._do(self._note(self._fleet.next_event()))

    def abandon(self) -> None:
        """End early, and wait until the workers are free."""
        self._all_drawn, self._useless = True, _none
        self._cancel(set(self._open))
        deque(self.episodes(), maxlen=0)

    def close_books(self) -> None:
        """Complete the statistics."""
        stats, config = self.stats, self._config
        now = time.perf_counter()
        stats.wall_s, stats.tail_s = now - self._started_s, now - self._last_start_s
        stats.env_capacity_s = stats.wall_s * config.env_workers * config.parallel_steps
        stats.policy_capacity_s = stats.wall_s * config.policy_replicas
        stats.retries, stats.faults = self._schedule.num_retries, self._schedule.faults.total()
        for counters in self._fleet.take_counters():
            stats.policy_busy_s += counters.busy_s
            stats.policy_batches += counters.num_batches
            stats.policy_rows += counters.num_rows
            stats.queue_rows += counters.queue_rows
            stats.queue_max = max(stats.queue_max, counters.queue_max)

    def _cancel(self, indices: set[int]) -> None:
        if indices:
            self._do(self._schedule.useless(indices))

    def _join(self, worker: int) -> list[Action]:
        return self._schedule.worker_joined(worker, self._config.slots_per_worker + self._config.spare_slots)

    def _draw(self) -> None:
        """Take specs as long as one could start at once."""
        while not self._all_drawn and self._schedule.has_room:
            spec = next(self._specs, None)
            if spec is None:
                self._all_drawn = True
                return
            self._open[self._num_drawn] = spec
            self._num_drawn += 1
            self._do(self._schedule.add())

    def _note(self, event: Event) -> list[Action]:
        """Tell the schedule what happened."""
        match event:
            case Joined(worker):
                return self._join(worker)
            case Returned(worker, index, row):
                self._book(index, row)
                return self._schedule.episode_ended(worker, index)
            case Raised(worker, index, reason):
                return self._schedule.episode_failed(worker, index, reason)
            case Lost(worker, reason, node):
                return self._schedule.worker_lost(worker, reason, node=node)
            case Hangs(worker, key, reason):
                hanging = [index for index in self._schedule.running_on(worker) if self._open[index].key == key]
                return self._schedule.deadline_passed(worker, hanging[0], reason) if hanging else []
            case ReplicaLost(replica, reason, node):
                return self._schedule.replica_lost(replica, reason, node=node)

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Start(worker, index):
                    trajectory = self._fleet.start_episode(worker, index, self._open[index], self._decoding)
                    self._trajectories[index] = trajectory if self._decoding.keep_trajectory else None
                    self._nodes[index] = self._fleet.node_of(worker)
                    self._last_start_s = time.perf_counter()
                case Cancel(worker, index):
                    self._fleet.cancel(worker, self._open[index])
                case Drop(index):
                    self._end(index, _nothing_of(self._open[index], CANCELLED), None, cancelled=True)
                case GiveUp(index, reason):
                    self._end(index, _nothing_of(self._open[index], reason), None)
                case Replace(worker):
                    self._fleet.replace_worker(worker)
                case ReplaceReplica(replica):
                    self._fleet.replace_replica(replica)
                case Stop(reason):
                    problem = f"more faults than the {self._config.fault_budget} that a rollout may have: {reason}"
                    raise UserError("rollout", "rollout.fault_budget", problem, "mend the cause, or raise the budget")

    def _book(self, index: int, row: Row) -> None:
        stats = self.stats
        stats.resets += 1
        stats.reset_s += row.reset_s
        stats.step_s += row.step_s
        if row.cancelled:
            stats.dead_steps += row.record.num_steps
            self._end(index, row.record.model_copy(update={"error": CANCELLED}), None, cancelled=True)
        else:
            stats.episodes += 1
            stats.env_steps += row.record.num_steps
            self._end(index, row.record, self._trajectories[index])

    def _end(self, index: int, record: EpisodeRecord, trajectory: Any, *, cancelled: bool = False) -> None:
        del self._open[index]
        self._trajectories.pop(index, None)
        self.stats.cancelled += cancelled
        self._ended.append(Finished(index, record, trajectory, cancelled, self._nodes.pop(index, "")))


def _none(finished: Finished) -> set[int]:
    return set()


def _nothing_of(spec: EpisodeSpec, why: str) -> EpisodeRecord:
    """The record of an episode that did not come to its end."""
    return EpisodeRecord(spec=spec, success=False, num_steps=0, num_chunks=0, error=why)


def standard_engine(env: EnvConfig, policy_uri: str, config: RolloutConfig) -> RolloutEngine:
    """The engine of the stages: the environment that `env` names and the checkpoint at `policy_uri`.

    Each policy server fetches the checkpoint itself. Where simulators run on other machines, each settles there how it
    draws. Raises UserError as `gripline.envs.make_env` and `gripline.policies.load_policy` do.
    """
    renderer = prepare(env) if simulators_run_here() else None
    warm_up = [
        EpisodeSpec(suite=env.suite, task=task, instruction="", init_seed=0, split="train") for task in env.tasks
    ]
    return RolloutEngine(
        partial(make_env_with, env, renderer), partial(make_served_policy, policy_uri), config, warm_up=warm_up
    )

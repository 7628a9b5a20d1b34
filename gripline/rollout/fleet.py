"""The processes of a rollout: starts and replaces env workers and policy servers, and tells what becomes of them.

Everything that happens anywhere arrives in one queue, so the driver never searches for who is done. A worker or policy
server that does not answer in time is reported as lost; whoever hears of it decides whether to replace it.
"""

import contextlib
import itertools
import math
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

from gripline.config import RolloutConfig
from gripline.errors import UserError
from gripline.rollout.actors import EnvWorker
from gripline.rollout.messages import (
    Decoding,
    PolicyCounters,
    PolicyFailedError,
    Row,
    ServedPolicy,
    WorkerStatus,
)
from gripline.rollout.policy_server import PolicyServer
from gripline.rollout.trace import TraceEvent
from gripline.types import Env, EpisodeSpec

START_TIMEOUT_S = 300.0
"""For a process to start and load what it imports; warm-up resets come on top."""
ANSWER_MARGIN_S = 5.0
"""Beyond the longest deadline: for a process that is busy, but not stopped, to say so."""
LONGEST_POLL_S = 5.0
LONGEST_PING_S = 1.0
"""Replicas are few, and their death is seen by nobody else."""
MORE_CALLS = 8
"""Of an env worker besides its episodes, such as `warm_up`."""
POLICY_CALLS = 10_000
"""Requests that a policy server may hold; more would wait where its own queue does not see them."""
ASK_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker is ready."""

    worker: int


@dataclass(frozen=True, slots=True)
class Returned:
    """An episode's row came back."""

    worker: int
    index: int
    row: Row


@dataclass(frozen=True, slots=True)
class Raised:
    """An episode's simulator raised."""

    worker: int
    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker died or does not answer."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class Hangs:
    """A worker answers, but the simulator of the episode with this key is over its deadline."""

    worker: int
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReplicaLost:
    """A policy server died or does not answer."""

    replica: int
    reason: str


Event = Joined | Returned | Raised | Lost | Hangs | ReplicaLost


class _News(NamedTuple):
    """An answer of an actor: to which call, of whom, and the future that holds it."""

    call: str
    actor: int
    episode: int
    future: Any


@dataclass(slots=True)
class _Actor:
    handle: Any
    place: int
    """Which of the workers (or replicas) it is; who replaces it takes its place."""
    started: Any
    """Reference to what it answers once it is ready."""
    started_s: float
    ready: bool = False
    asked_s: float | None = None
    """When it was asked for its status without an answer so far."""


def one_line(error: object) -> str:
    """An error's text as it is recorded."""
    return " ".join(str(error).split())[:500]


class Fleet:
    """See the module's docstring. Workers and replicas are known by numbers; none is used twice."""

    def __init__(
        self,
        make_env: Callable[[], Env],
        make_policy: Callable[[], ServedPolicy],
        config: RolloutConfig,
        warm_up: Sequence[EpisodeSpec],
    ) -> None:
        """Start everything and wait until it is ready. warm_up: specs that each worker resets its simulators to.

        Raises UserError if that takes too long or a reset its deadline, and what the actors raise.
        """
        self._make_env, self._make_policy, self._config, self._warm_up = make_env, make_policy, config, list(warm_up)
        self._start_timeout_s = START_TIMEOUT_S + len(self._warm_up) * config.reset_timeout_s
        self._answer_timeout_s = max(config.reset_timeout_s, config.step_timeout_s) + ANSWER_MARGIN_S
        self._poll_s = min(LONGEST_POLL_S, min(config.reset_timeout_s, config.step_timeout_s) / 4)
        self._ping_s = min(LONGEST_PING_S, config.policy_timeout_s / 4)
        self._next_poll_s = self._next_ping_s = 0.0
        self._numbers = itertools.count()
        self._workers: dict[int, _Actor] = {}
        self._replicas: dict[int, _Actor] = {}
        self._news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        self._found: deque[Event] = deque()
        self._weights: Any = None
        for place in range(config.policy_replicas):
            self._start_replica(place)
        for place in range(config.env_workers):
            self._start_worker(place)
        try:
            self._wait_until_ready()
        except BaseException:  # whatever it is: no process may stay behind
            self.close()
            raise

    @property
    def ready_workers(self) -> list[int]:
        """Those that can run episodes."""
        return [worker for worker, actor in self._workers.items() if actor.ready]

    def start_episode(self, worker: int, index: int, spec: EpisodeSpec, decoding: Decoding) -> Any:
        """Start an episode, which `next_event` will tell of; returns the reference to its trajectory."""
        run_episode = self._workers[worker].handle.run_episode.options(num_returns=2)
        row, trajectory = run_episode.remote(spec, decoding)
        self._expect("row", worker, row, episode=index)
        return trajectory

    def cancel(self, worker: int, spec: EpisodeSpec) -> None:
        """Ask a worker to end an episode at its next chunk boundary."""
        self._workers[worker].handle.cancel.remote(spec.key)

    def replace_worker(self, worker: int) -> None:
        """Kill what is left of a worker and start another in its place."""
        lost = self._workers.pop(worker)
        ray.kill(lost.handle)
        self._start_worker(lost.place)

    def replace_replica(self, replica: int) -> None:
        """The same for a policy server; it gets the present weights."""
        lost = self._replicas.pop(replica)
        ray.kill(lost.handle)
        self._start_replica(lost.place)
        self._tell_replicas(self._workers.values())

    def set_weights(self, weights: Any) -> None:
        """Weights by name (numpy arrays, or a reference to them) for every replica, also for later ones.

        A replica that does not take them in time is killed, and reported as lost.
        """
        self._weights = weights if isinstance(weights, ray.ObjectRef) else ray.put(weights)
        starting = [actor.started for actor in self._replicas.values() if not actor.ready]
        if starting:  # with the former weights
            ray.wait(starting, num_returns=len(starting), timeout=self._start_timeout_s)
        taken = {number: actor.handle.set_weights.remote(self._weights) for number, actor in self._replicas.items()}
        for replica, reference in taken.items():
            try:
                ray.get(reference, timeout=self._config.policy_timeout_s)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
                ray.kill(self._replicas[replica].handle)
                self._found.append(ReplicaLost(replica, f"it did not take new weights: {one_line(error)}"))

    def next_event(self) -> Event:
        """Wait for what happens next. Raises RuntimeError when the policy itself fails: no other try would help."""
        while True:
            while self._found:
                event = self._found.popleft()
                if self._actor(event.replica if isinstance(event, ReplicaLost) else event.worker) is not None:
                    return event
            now = time.monotonic()
            try:
                news = self._news.get(timeout=max(0.0, min(self._next_poll_s, self._next_ping_s) - now))
            except queue.Empty:  # only then: an answer that lies there already is not late
                self._poll(now)
            else:
                self._found.extend(self._read(news))

    def take_counters(self) -> list[PolicyCounters]:
        """What each policy server did since the last call."""
        return self._ask([actor.handle.take_counters.remote() for actor in self._replicas.values() if actor.ready])

    def set_tracing(self, on: bool) -> None:
        """Let every process record what it does, or stop."""
        for actor in [*self._workers.values(), *self._replicas.values()]:
            actor.handle.set_tracing.remote(on)

    def take_trace(self) -> list[TraceEvent]:
        """What was recorded since the last call, of those that still live."""
        actors = [*self._workers.values(), *self._replicas.values()]
        parts = self._ask([actor.handle.take_trace.remote() for actor in actors if actor.ready])
        return [event for part in parts for event in part]

    def close(self) -> None:
        """Stop the actors."""
        for actor in [*self._workers.values(), *self._replicas.values()]:
            ray.kill(actor.handle)

    def _actor(self, number: int) -> _Actor | None:
        return self._workers.get(number) or self._replicas.get(number)

    def _start_worker(self, place: int) -> None:
        calls = self._config.slots_per_worker + self._config.spare_slots + MORE_CALLS
        options = ray.remote(num_cpus=0, resources={"env": 1}, max_concurrency=calls, concurrency_groups={"control": 1})
        replicas = [actor.handle for actor in self._replicas.values()]
        handle = options(EnvWorker).remote(self._make_env, self._config, replicas, f"worker {place}")
        self._register(self._workers, handle, place, handle.warm_up.remote(self._warm_up))

    def _start_replica(self, place: int) -> None:
        options = ray.remote(
            num_cpus=0, resources={"policy": 1}, max_concurrency=POLICY_CALLS, concurrency_groups={"control": 1}
        )
        handle = options(PolicyServer).remote(self._make_policy, self._config, f"policy {place}")
        started = handle.ready.remote() if self._weights is None else handle.set_weights.remote(self._weights)
        self._register(self._replicas, handle, place, started)

    def _register(self, actors: dict[int, _Actor], handle: Any, place: int, started: Any) -> None:
        number = next(self._numbers)
        actors[number] = _Actor(handle, place, started, time.monotonic())
        self._expect("started", number, started)

    def _expect(self, call: str, actor: int, reference: Any, episode: int = -1) -> None:
        """Its answer shall arrive in the queue."""
        reference.future().add_done_callback(lambda future: self._news.put(_News(call, actor, episode, future)))

    def _wait_until_ready(self) -> None:
        actors = [*self._replicas.values(), *self._workers.values()]
        try:
            answers = ray.get([actor.started for actor in actors], timeout=self._start_timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            problem = f"env workers or policy servers were not ready after {self._start_timeout_s:.0f} s"
            raise UserError("rollout", "", problem, "see whether others use the Ray cluster (`ray status`)") from error
        for actor in actors:
            self._news.get()
            actor.ready = True
        slowest_s = max(answer.reset_s for answer in answers[len(self._replicas) :])
        if slowest_s >= self._config.reset_timeout_s:
            problem = f"is {self._config.reset_timeout_s:g} s, but a reset took {slowest_s:.1f} s here"
            raise UserError("rollout", "rollout.reset_timeout_s", problem, f"set it to {math.ceil(4 * slowest_s)}")

    def _tell_replicas(self, workers: Iterable[_Actor]) -> None:
        """Workers send their requests to those that are ready; while none is, requests wait."""
        ready = [actor.handle for actor in self._replicas.values() if actor.ready]
        if ready:
            for worker in workers:
                worker.handle.set_replicas.remote(ready)

    def _poll(self, now: float) -> None:
        if now >= self._next_poll_s:
            self._next_poll_s = now + self._poll_s
            self._check(self._workers, "status", self._answer_timeout_s, now)
        if now >= self._next_ping_s:
            self._next_ping_s = now + self._ping_s
            self._check(self._replicas, "ping", self._config.policy_timeout_s, now)

    def _check(self, actors: dict[int, _Actor], call: str, timeout_s: float, now: float) -> None:
        for number, actor in actors.items():
            if not actor.ready:
                if now - actor.started_s > self._start_timeout_s:
                    self._found.append(self._lost(number, f"not ready {now - actor.started_s:.0f} s after its start"))
            elif actor.asked_s is None:
                actor.asked_s = now
                self._expect(call, number, getattr(actor.handle, call).remote())
            elif now - actor.asked_s > timeout_s:
                self._found.append(self._lost(number, f"no answer for {now - actor.asked_s:.0f} s"))

    def _lost(self, number: int, reason: str) -> Lost | ReplicaLost:
        if number in self._workers:
            return Lost(number, f"environment worker lost: {reason}")
        return ReplicaLost(number, f"policy server lost: {reason}")

    def _read(self, news: _News) -> list[Event]:
        actor = self._actor(news.actor)
        if actor is None:  # replaced meanwhile
            return []
        error = news.future.exception()
        if isinstance(error, ray.exceptions.RayTaskError):
            return [self._raised(news, error)]
        if error is not None:
            return [self._lost(news.actor, one_line(error))]
        match news.call:
            case "row":
                return [Returned(news.actor, news.episode, news.future.result())]
            case "status":
                actor.asked_s = None
                return self._hanging(news.actor, news.future.result())
            case "started":
                actor.ready = True
                is_worker = news.actor in self._workers
                self._tell_replicas([actor] if is_worker else self._workers.values())
                return [Joined(news.actor)] if is_worker else []
            case _:  # "ping"
                actor.asked_s = None
                seconds, limit_s = news.future.result(), self._config.policy_timeout_s
                late = f"a batch takes longer than {limit_s:g} s"
                return [self._lost(news.actor, late)] if seconds > limit_s else []

    def _raised(self, news: _News, error: ray.exceptions.RayTaskError) -> Event:
        reason = one_line(f"{type(error.cause).__name__}: {error.cause}")
        if news.call == "started":
            return self._lost(news.actor, reason)
        if news.call != "row":
            raise error
        if isinstance(error.cause, PolicyFailedError):
            raise RuntimeError(f"the policy server failed: {error.cause}") from error
        return Raised(news.actor, news.episode, reason)

    def _hanging(self, worker: int, status: WorkerStatus) -> list[Event]:
        limits = {"reset": self._config.reset_timeout_s, "step": self._config.step_timeout_s}
        for slot in status.slots:
            limit_s = limits.get(slot.doing, math.inf)
            if slot.seconds > limit_s:
                return [Hangs(worker, slot.key, f"simulator hangs: a {slot.doing} takes longer than {limit_s:g} s")]
        return []

    def _ask(self, references: list[Any]) -> list[Any]:
        """The answers of those who live and answer soon: what they could tell is nothing to wait for."""
        done, _ = ray.wait(references, num_returns=len(references), timeout=ASK_TIMEOUT_S) if references else ([], [])
        answers = []
        for reference in done:
            with contextlib.suppress(ray.exceptions.RayActorError):
                answers.append(ray.get(reference))
        return answers

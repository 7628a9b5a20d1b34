"""The processes of a rollout: starts and replaces env workers and policy servers, and tells what becomes of them.

Everything that happens anywhere arrives in one queue, so the driver never searches for who is done. A worker or policy
server that does not answer in time is reported as lost; whoever hears of it decides whether to replace it. One that has
no machine yet is waited for, and nobody counts that as a fault: a pod may take minutes to come back. Meanwhile the
others do the work, as long as there is one of each kind.
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

from gripline import stopping
from gripline.config import RolloutConfig
from gripline.errors import UserError
from gripline.rollout.actors import EnvWorker
from gripline.rollout.events import Event, Hangs, Joined, Lost, Raised, ReplicaLost, Returned
from gripline.rollout.messages import (
    Decoding,
    PolicyCounters,
    PolicyFailedError,
    ServedPolicy,
    WarmUp,
    WorkerStatus,
    actor_options,
)  # fmt: skip
from gripline.rollout.nodes import Nodes
from gripline.rollout.policy_server import PolicyServer
from gripline.rollout.shares import Shares
from gripline.rollout.trace import TraceEvent
from gripline.types import Env, EpisodeSpec

START_TIMEOUT_S = 300.0
"""For a process to load what it needs, once it has a machine; warm-up resets come on top."""
GATHER_S = 60.0
"""After the last one got ready, how long a rollout's start waits for those that have no machine yet."""
ANSWER_MARGIN_S = 5.0
"""Beyond the longest deadline: for a process that is busy, but not stopped, to say so."""
LONGEST_POLL_S = 5.0
LONGEST_PING_S = 1.0
"""Replicas are few, and their death is seen by nobody else."""
MORE_CALLS = 8
"""Of an env worker besides its episodes, such as `warm_up`."""
POLICY_CALLS = 100
"""Calls that a policy server may hold; observations come another way."""
ASK_TIMEOUT_S = 10.0


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
    """Future of what it answers once it is ready."""
    node: str = ""
    """Its machine; empty while it waits for one."""
    placed_s: float = 0.0
    """Since when it has a machine."""
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

        Where machines come and go (`Shares.nodes_timeout_s`), those that have none yet join later. Raises UserError if
        it takes too long or a reset its deadline, and what the actors raise.
        """
        self._make_env, self._make_policy, self._config, self._warm_up = make_env, make_policy, config, list(warm_up)
        self._shares = Shares.given()
        self._start_timeout_s = START_TIMEOUT_S + len(self._warm_up) * config.reset_timeout_s
        self._answer_timeout_s = max(config.reset_timeout_s, config.step_timeout_s) + ANSWER_MARGIN_S
        self._poll_s = min(LONGEST_POLL_S, min(config.reset_timeout_s, config.step_timeout_s) / 4)
        self._ping_s = min(LONGEST_PING_S, config.policy_timeout_s / 4)
        self._next_poll_s = self._next_ping_s = 0.0
        self._idle_since_s: float | None = None
        """Since when there is no worker or no replica that is ready."""
        self._numbers = itertools.count()
        self._workers: dict[int, _Actor] = {}
        self._replicas: dict[int, _Actor] = {}
        self._nodes = Nodes()
        self._news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        self._found: deque[Event] = deque()
        self._weights: Any = None
        self._slowest_reset_s = 0.0
        for place in range(config.policy_replicas):
            self._start_replica(place)
        for place in range(config.env_workers):
            self._start_worker(place)
        try:
            self._gather()
        except BaseException:  # whatever it is: no process may stay behind
            self.close()
            raise

    @property
    def ready_workers(self) -> list[int]:
        """Those that can run episodes."""
        return [worker for worker, actor in self._workers.items() if actor.ready]

    def node_of(self, worker: int) -> str:
        """The machine of a worker."""
        return self._workers[worker].node

    def gone_of(self, nodes: set[str]) -> set[str]:
        """Those of these machines that are gone, with all that lay in their memory."""
        return self._nodes.gone_of(nodes)

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
        taken = {number: actor.handle.set_weights.remote(self._weights) for number, actor in self._replicas.items()}
        for replica, reference in taken.items():
            actor = self._replicas[replica]
            if not actor.ready:  # it may have no machine yet: nobody waits for it, and it is ready once it has these
                actor.started = self._expect("started", replica, reference)
                continue
            try:
                ray.get(reference, timeout=self._config.policy_timeout_s)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
                ray.kill(actor.handle)
                self._found.append(self._lost(replica, f"it did not take new weights: {one_line(error)}"))

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
        """Let every process record what it does, or stop. Those that are ready do when this returns."""
        actors = [*self._workers.values(), *self._replicas.values()]
        told = [(actor.ready, actor.handle.set_tracing.remote(on)) for actor in actors]
        self._ask([answer for ready, answer in told if ready])

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
        options = actor_options("env", self._shares.env_gpus, calls)
        handle = options(EnvWorker).remote(self._make_env, self._config, self._ready_replicas(), f"worker {place}")
        self._register(self._workers, handle, place, handle.warm_up.remote(self._warm_up))

    def _start_replica(self, place: int) -> None:
        options = actor_options("policy", self._shares.policy_gpus, POLICY_CALLS)
        handle = options(PolicyServer).remote(self._make_policy, self._config, f"policy {place}")
        started = handle.ready.remote() if self._weights is None else handle.set_weights.remote(self._weights)
        self._register(self._replicas, handle, place, started)

    def _register(self, actors: dict[int, _Actor], handle: Any, place: int, started: Any) -> None:
        number = next(self._numbers)
        self._expect("placed", number, handle.node.remote())
        actors[number] = _Actor(handle, place, self._expect("started", number, started))

    def _expect(self, call: str, actor: int, reference: Any, episode: int = -1) -> Any:
        """Its answer shall arrive in the queue; returns the future of it."""
        future = reference.future()
        future.add_done_callback(lambda done: self._news.put(_News(call, actor, episode, done)))
        return future

    def _gather(self) -> None:
        """Wait until the first rollout can begin."""
        began_s = changed_s = time.monotonic()
        num_lost = 0
        while not self._may_begin(began_s, changed_s, time.monotonic()):
            stopping.check()
            try:
                news = self._news.get(timeout=self._ping_s)
            except queue.Empty:
                continue
            error = news.future.exception()
            if error is None:
                self._read(news)
                changed_s = time.monotonic()
            elif self._actor(news.actor) is not None:
                num_lost += 1
                died = isinstance(error, ray.exceptions.RayActorError) and not error.actor_init_failed
                if not (died and self._shares.nodes_timeout_s > 0) or num_lost > self._config.fault_budget:
                    raise error
                (self.replace_worker if news.actor in self._workers else self.replace_replica)(news.actor)
        if self._slowest_reset_s >= self._config.reset_timeout_s:
            problem = f"is {self._config.reset_timeout_s:g} s, but a reset took {self._slowest_reset_s:.1f} s here"
            next_step = f"set it to {math.ceil(4 * self._slowest_reset_s)}"
            raise UserError("rollout", "rollout.reset_timeout_s", problem, next_step)

    def _may_begin(self, began_s: float, changed_s: float, now_s: float) -> bool:
        """Raises UserError if what is missing has not come in time."""
        missing = [actor for actor in (*self._workers.values(), *self._replicas.values()) if not actor.ready]
        if not missing:
            return True
        patient = self._shares.nodes_timeout_s > 0
        placed = [actor.placed_s for actor in missing if actor.node]
        if now_s - (min(placed, default=now_s) if patient else began_s) > self._start_timeout_s:
            problem = f"env workers or policy servers were not ready after {self._start_timeout_s:.0f} s"
            raise UserError("rollout", "", problem, "see whether others use the Ray cluster (`ray status`)")
        self._check_idle(now_s)
        return patient and not placed and self._idle_since_s is None and now_s - changed_s > GATHER_S

    def _check_idle(self, now_s: float) -> None:
        """Raises UserError if nothing can run, and has not for as long as one waits for a machine."""
        if self.ready_workers and self._ready_replicas():
            self._idle_since_s = None
            return
        stopping.check()
        self._idle_since_s = self._idle_since_s or now_s
        limit_s = max(self._shares.nodes_timeout_s, self._start_timeout_s)
        if now_s - self._idle_since_s > limit_s:
            kind = "policy server" if self.ready_workers else "env worker"
            problem = f"no {kind} got ready for {limit_s:.0f} s"
            raise UserError("rollout", "", problem, "see the group's pods; cluster.start_timeout_s is how long to wait")

    def _ready_replicas(self) -> list[Any]:
        return [actor.handle for actor in self._replicas.values() if actor.ready]

    def _tell_replicas(self, workers: Iterable[_Actor]) -> None:
        """Workers send their requests to those that are ready; while none is, requests wait."""
        ready = self._ready_replicas()
        if ready:
            for worker in workers:
                worker.handle.set_replicas.remote(ready)

    def _poll(self, now: float) -> None:
        self._check_idle(now)
        if now >= self._next_poll_s:
            self._next_poll_s = now + self._poll_s
            self._check(self._workers, "status", self._answer_timeout_s, now)
        if now >= self._next_ping_s:
            self._next_ping_s = now + self._ping_s
            self._check(self._replicas, "ping", self._config.policy_timeout_s, now)

    def _check(self, actors: dict[int, _Actor], call: str, timeout_s: float, now: float) -> None:
        for number, actor in actors.items():
            if not actor.ready:
                if actor.node and now - actor.placed_s > self._start_timeout_s:
                    self._found.append(self._lost(number, f"not ready {now - actor.placed_s:.0f} s after its start"))
            elif actor.asked_s is None:
                actor.asked_s = now
                self._expect(call, number, getattr(actor.handle, call).remote())
            elif now - actor.asked_s > timeout_s:
                self._found.append(self._lost(number, f"no answer for {now - actor.asked_s:.0f} s"))

    def _lost(self, number: int, reason: str) -> Lost | ReplicaLost:
        if number in self._workers:
            return Lost(number, f"environment worker lost: {reason}", self._gone_node(self._workers[number]))
        return ReplicaLost(number, f"policy server lost: {reason}", self._gone_node(self._replicas[number]))

    def _gone_node(self, actor: _Actor) -> str:
        return actor.node if actor.node and self._nodes.is_gone(actor.node) else ""

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
            case "placed":
                actor.node, actor.placed_s = news.future.result(), time.monotonic()
                return []
            case "started":
                return self._started(news, actor)
            case _:  # "ping"
                actor.asked_s = None
                seconds, limit_s = news.future.result(), self._config.policy_timeout_s
                late = f"a batch takes longer than {limit_s:g} s"
                return [self._lost(news.actor, late)] if seconds > limit_s else []

    def _started(self, news: _News, actor: _Actor) -> list[Event]:
        if news.future is not actor.started:  # with weights that are not the present ones
            return []
        actor.ready = True
        answer = news.future.result()
        if isinstance(answer, WarmUp):
            actor.node = answer.node
            self._slowest_reset_s = max(self._slowest_reset_s, answer.reset_s)
            self._tell_replicas([actor])
            return [Joined(news.actor)]
        self._tell_replicas(self._workers.values())
        return []

    def _raised(self, news: _News, error: ray.exceptions.RayTaskError) -> Event:
        reason = one_line(f"{type(error.cause).__name__}: {error.cause}")
        weights_gone = isinstance(error, ray.exceptions.ObjectLostError)  # with the machine of the learner
        if news.call == "started" and not weights_gone:
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

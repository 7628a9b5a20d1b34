"""The env worker of a rollout: an asynchronous Ray actor that runs episodes on its simulators. It imports no torch."""

import asyncio
import contextlib
import heapq
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from gripline.config import RolloutConfig
from gripline.rollout.asking import PolicyClient
from gripline.rollout.messages import (
    Decoding,
    Doing,
    PolicyFailedError,
    Row,
    SlotStatus,
    WarmUp,
    WorkerStatus,
    control,
    drained,
    joined,
    this_node,
)
from gripline.rollout.slots import Slots
from gripline.rollout.trace import TraceEvent
from gripline.types import ActionBatch, Env, EpisodeRecord, EpisodeSpec, Observation, Outcome, Step, Trajectory

__all__ = ["Decoding", "EnvWorker"]

TRACE_KINDS: dict[Doing, str] = {"reset": "reset", "step": "step", "waiting": "wait", "parked": "parked"}
Result = TypeVar("Result")


class _CancelledError(Exception):
    """The episode is not wanted any more."""


@dataclass(eq=False)
class _Slot:
    """A place for one simulator and its episode."""

    number: int
    env: Env | None = None
    now: tuple[Doing, float, str] = field(default_factory=lambda: ("idle", time.monotonic(), ""))
    """What it does, since when (monotonic seconds), with which episode. Replaced as a whole: other threads read it."""


@dataclass(eq=False)
class _Episode:
    slot: _Slot
    spec: EpisodeSpec
    key: str
    label: str
    turn: asyncio.Future[Any] | None = None
    """What it waits for; None while its simulator runs."""
    cancelled: bool = False
    reset_s: float = 0.0
    step_s: float = 0.0
    num_steps: int = 0
    success: bool = False
    outcome: Outcome | None = None
    observations: list[Observation] = field(default_factory=list)
    """Only if the trajectory is kept."""
    answers: list[ActionBatch] = field(default_factory=list)

    def book(self, observation: Observation | None, answer: ActionBatch, step: Step, seconds: float) -> None:
        """A chunk was executed."""
        self.step_s += seconds
        self.num_steps += step.num_steps
        self.success = step.success
        self.outcome = step.outcome
        self.answers.append(answer)
        if observation is not None:
            self.observations.append(observation)


class EnvWorker:
    """Runs episodes on its simulators; `gripline.rollout.slots` decides which of them runs next.

    With `config.parallel_steps` of 1 simulators run on the event loop's own thread: a chunk of an in-process simulator
    takes a few milliseconds, and the core is the worker's. Otherwise they run on as many threads, each simulator on one
    at a time. Wrap it with `max_concurrency` of at least all slots and `concurrency_groups={"control": 1}`.
    """

    def __init__(
        self, make_env: Callable[[], Env], config: RolloutConfig, replicas: Sequence[Any], name: str = "worker 0"
    ) -> None:
        """replicas: handles of policy servers. name: of the worker in timelines."""
        self._make_env = make_env
        self._name = name
        self._slots = Slots(num_seats=config.slots_per_worker, num_threads=config.parallel_steps)
        self._threads = ThreadPoolExecutor(config.parallel_steps) if config.parallel_steps > 1 else None
        self._policy = PolicyClient(uuid.uuid4().hex, replicas, flush_at=max(1, config.slots_per_worker // 2))
        self._places = [_Slot(number) for number in range(config.slots_per_worker + config.spare_slots)]
        self._free = list(range(len(self._places)))
        self._episodes: dict[int, _Episode] = {}
        """By the number of their slot."""
        self._loop: asyncio.AbstractEventLoop | None = None
        """On which episodes run; methods of the control group run on another."""
        self._pump_scheduled = False
        self._tracing = False
        self._trace: deque[TraceEvent] = deque()
        self._clock_offset_s = time.time() - time.monotonic()

    async def warm_up(self, specs: list[EpisodeSpec]) -> WarmUp:
        """Build a simulator and reset it to each of the specs, before the first episode needs it."""
        self._loop = asyncio.get_running_loop()
        longest_s = 0.0
        for spec in specs:
            _, seconds = await self._timed(self._reset, self._places[0], spec)
            longest_s = max(longest_s, seconds)
        return WarmUp(os.getpid(), longest_s, this_node())

    async def run_episode(self, spec: EpisodeSpec, decoding: Decoding) -> tuple[Row, Trajectory | None]:
        """Run one episode to success, to the horizon, or until it is cancelled.

        May be called for as many episodes at once as there are slots and spare slots. Exceptions of the simulator reach
        the caller as they are; a simulator that raised is not used again. PolicyFailedError where the policy raised.
        """
        self._loop = asyncio.get_running_loop()
        slot = self._places[heapq.heappop(self._free)]
        episode = _Episode(slot, spec, spec.key, f"{spec.task} {spec.group}.{spec.member}")
        self._episodes[slot.number] = episode
        self._slots.accept(slot.number)
        cancelled = False
        try:
            await self._run(episode, decoding)
        except _CancelledError:
            cancelled = True
        except PolicyFailedError:
            raise
        except Exception:  # whatever it raised, it may do so again
            self._discard_simulator(slot)
            raise
        finally:
            self._leave(episode)
        row = Row(_record(episode, decoding), episode.reset_s, episode.step_s, cancelled)
        return row, _trajectory(episode) if decoding.keep_trajectory and not cancelled else None

    @control
    async def node(self) -> str:
        """Its machine; answered as soon as it has one."""
        return this_node()

    @control
    async def cancel(self, key: str) -> None:
        """End the episodes of this spec at their next chunk boundary; without effect where there is none."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._cancel, key)

    @control
    async def set_replicas(self, replicas: list[Any]) -> None:
        """These are the policy servers from now on; requests that were lost with another one are sent again."""
        if self._loop is None:
            self._policy.use_replicas(replicas)
        else:
            self._loop.call_soon_threadsafe(self._policy.use_replicas, replicas)

    @control
    async def status(self) -> WorkerStatus:
        """What every slot does."""
        now_s = time.monotonic()
        slots = [SlotStatus(doing, now_s - since_s, key) for doing, since_s, key in (each.now for each in self._places)]
        return WorkerStatus(tuple(slots), self._policy.num_unanswered)

    @control
    async def set_tracing(self, on: bool) -> None:
        """Record from now on what slots do, or stop."""
        self._tracing = on

    @control
    async def take_trace(self) -> list[TraceEvent]:
        """What was recorded since the last call."""
        return drained(self._trace)

    async def _run(self, episode: _Episode, decoding: Decoding) -> None:
        number = episode.slot.number
        await self._turn(episode, "queued")
        observation, episode.reset_s = await self._simulate(episode, "reset", self._reset, episode.slot, episode.spec)
        if not self._slots.reset_done(number):
            await self._turn(episode, "parked")
        while not episode.cancelled:
            self._note(episode, "waiting")
            self._pump_soon()
            noise_key = (episode.spec.noise_seed, len(episode.answers))
            episode.turn = self._policy.ask(self._slots.seat(number), observation, noise_key, decoding)
            answer: ActionBatch = await episode.turn
            self._slots.answered(number)
            await self._turn(episode, "ready")
            step, seconds = await self._simulate(episode, "step", self._step, episode.slot, answer)
            self._slots.step_done(number)
            episode.book(observation if decoding.keep_trajectory else None, answer, step, seconds)
            if step.success or step.truncated:
                return
            observation = step.observation
        raise _CancelledError

    async def _turn(self, episode: _Episode, doing: Doing) -> None:
        """Wait until the episode may go on. Raises _CancelledError if it need not."""
        self._note(episode, doing)
        episode.turn = asyncio.get_running_loop().create_future()
        self._pump_soon()
        await episode.turn

    async def _simulate(
        self, episode: _Episode, doing: Doing, call: Callable[..., Result], *arguments: Any
    ) -> tuple[Result, float]:
        episode.turn = None
        self._note(episode, doing)
        return await self._timed(call, *arguments)

    async def _timed(self, call: Callable[..., Result], *arguments: Any) -> tuple[Result, float]:
        """What the call returns, and how many seconds it took."""
        started_s = time.perf_counter()
        if self._threads is None:
            result = call(*arguments)
        else:
            result = await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
        return result, time.perf_counter() - started_s

    def _reset(self, slot: _Slot, spec: EpisodeSpec) -> Observation:
        if slot.env is None:
            slot.env = self._make_env()
        return slot.env.reset(spec)

    def _step(self, slot: _Slot, answer: ActionBatch) -> Step:
        assert slot.env is not None
        return slot.env.step(answer.actions_BKA[0])

    def _pump_soon(self) -> None:
        if not self._pump_scheduled:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Let those simulators run that can; observations leave when no other is about to join them."""
        self._pump_scheduled = False
        granted = False
        while (job := self._slots.next_job()) is not None:
            granted = True
            _grant(self._episodes[job[1]])
        if self._threads is not None or not granted:
            self._policy.flush()

    def _cancel(self, key: str) -> None:
        for episode in self._episodes.values():
            if episode.key == key:
                episode.cancelled = True
                if episode.turn is not None and not episode.turn.done():
                    episode.turn.set_exception(_CancelledError())

    def _leave(self, episode: _Episode) -> None:
        """The slot is free, and the seat is the next one's."""
        number = episode.slot.number
        self._note(episode, "idle")
        del self._episodes[number]
        promoted = self._slots.end(number)
        if promoted is not None:
            _grant(self._episodes[promoted])
        heapq.heappush(self._free, number)
        self._pump_soon()

    def _discard_simulator(self, slot: _Slot) -> None:
        env, slot.env = slot.env, None
        if env is not None:
            with contextlib.suppress(Exception):  # what is broken may also be unable to close
                env.close()

    def _note(self, episode: _Episode, doing: Doing) -> None:
        """The slot does something else from now on."""
        slot, now_s = episode.slot, time.monotonic()
        before, since_s, _ = slot.now
        slot.now = (doing, now_s, "" if doing == "idle" else episode.key)
        if self._tracing and before in TRACE_KINDS:
            lane, offset_s = f"{self._name}/slot {slot.number}", self._clock_offset_s
            event = TraceEvent(TRACE_KINDS[before], lane, since_s + offset_s, now_s + offset_s, episode.label)
            self._trace.append(event)


def _grant(episode: _Episode) -> None:
    if episode.turn is not None and not episode.turn.done():  # else it was cancelled meanwhile
        episode.turn.set_result(None)


def _record(episode: _Episode, decoding: Decoding) -> EpisodeRecord:
    actions = [] if decoding.keep_trajectory else [answer.actions_BKA[0].tolist() for answer in episode.answers]
    return EpisodeRecord(
        spec=episode.spec,
        success=episode.success,
        num_steps=episode.num_steps,
        num_chunks=len(episode.answers),
        actions_TKA=actions,
        failure=episode.outcome.failure if episode.outcome else "",
        conduct=episode.outcome.conduct if episode.outcome else None,
    )


def _trajectory(episode: _Episode) -> Trajectory:
    answers = joined(episode.answers)
    return Trajectory(
        instruction=episode.spec.instruction,
        images_TNHWC=np.stack([observation.images_NHWC for observation in episode.observations]),
        proprio_TP=np.stack([observation.proprio_P for observation in episode.observations]),
        tokens_TKA=answers.tokens_BKA,
        logprobs_TKA=answers.logprobs_BKA,
    )

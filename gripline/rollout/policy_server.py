"""The policy server of a rollout: an actor that answers observations with action chunks, in batches."""

import asyncio
import dataclasses
import functools
import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from gripline.config import RolloutConfig
from gripline.rollout.batching import Batcher, Request
from gripline.rollout.messages import (
    ActionAnswer,
    ActionRequest,
    PolicyCounters,
    ServedPolicy,
    control,
    drained,
    joined,
    rows_of,
)
from gripline.rollout.trace import TraceEvent
from gripline.types import ActionBatch


@dataclass(eq=False)
class _Message:
    """A request of which some rows are not answered yet."""

    request: ActionRequest
    num_open: int
    rows: list[int] = field(default_factory=list)
    """Computed, but not fetched."""
    parts: list[ActionBatch] = field(default_factory=list)
    error: Exception | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)


class PolicyServer:
    """Answers observations with action chunks; `gripline.rollout.batching` decides which rows are computed when.

    The policy computes on a thread of its own, so that requests are taken in meanwhile and the next batch knows them.
    Wrap it with a large `max_concurrency` and `concurrency_groups={"control": 1}`.
    """

    def __init__(self, make_policy: Callable[[], ServedPolicy], config: RolloutConfig, name: str = "policy 0") -> None:
        """name: of the server in timelines."""
        self._name = name
        self._policy = make_policy()
        self._batcher = Batcher(self._policy.batch_sizes, colocated=config.layout == "colocated")
        self._thread = ThreadPoolExecutor(1)
        self._rows: dict[int, tuple[_Message, int]] = {}
        """Rows that wait, by number: their request and their place in it."""
        self._tickets: dict[int, _Message] = {}
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._serving_since_s: float | None = None
        self._counters = PolicyCounters()
        self._tracing = False
        self._trace: deque[TraceEvent] = deque()

    async def ready(self) -> bool:
        """Answers once the policy is loaded; a failure to load reaches whoever waits for this."""
        return True

    async def set_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Take over the learner's weights, after the batch in work."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._policy.load_weights, weights)

    async def act(self, request: ActionRequest) -> ActionAnswer:
        """Actions for those rows that are computed first; `rest` brings more as long as there is a ticket."""
        message = _Message(request, len(request.seats))
        mode = (request.greedy, request.temperature)
        rows = []
        for row, (seat, (_, chunk)) in enumerate(zip(request.seats, request.noise_keys, strict=True)):
            number = next(self._numbers)
            self._rows[number] = (message, row)
            rows.append(Request(number, (request.worker, seat), mode, continues=chunk > 0))
        self._batcher.arrived(rows, time.monotonic())
        self._serve()
        return await self._next_answer(message)

    async def rest(self, ticket: int) -> ActionAnswer:
        """What came after the answer with this ticket."""
        return await self._next_answer(self._tickets.pop(ticket))

    async def take_counters(self) -> PolicyCounters:
        """What happened since the last call."""
        counters, self._counters = self._counters, PolicyCounters()
        return counters

    @control
    async def ping(self) -> float:
        """Seconds that the batch in work has taken so far; 0 if there is none."""
        since_s = self._serving_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    @control
    async def set_tracing(self, on: bool) -> None:
        """Record from now on which batches are computed, or stop."""
        self._tracing = on

    @control
    async def take_trace(self) -> list[TraceEvent]:
        """What was recorded since the last call."""
        return drained(self._trace)

    async def _next_answer(self, message: _Message) -> ActionAnswer:
        await message.news.wait()
        message.news.clear()
        if message.error is not None:
            raise message.error
        rows, parts, message.rows, message.parts = message.rows, message.parts, [], []
        ticket = None
        if message.num_open:
            ticket = next(self._numbers)
            self._tickets[ticket] = message
        return ActionAnswer(rows, joined(parts), self._batcher.num_waiting, ticket)

    def _serve(self) -> None:
        """Start the next batch if it is time for it."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        queue = self._batcher.num_waiting
        batch, again_s = self._batcher.next_batch(time.monotonic())
        if batch:
            self._count_queue(queue)
            task = loop.create_task(self._compute([self._rows.pop(request.number) for request in batch]))
            self._serving.add(task)  # the loop itself holds tasks only weakly
            task.add_done_callback(self._serving.discard)
        elif math.isfinite(again_s):
            self._timer = loop.call_later(again_s, self._serve)

    async def _compute(self, batch: list[tuple[_Message, int]]) -> None:
        """Compute a batch and tell those who wait."""
        request = batch[0][0].request
        observations = [message.request.observations[row] for message, row in batch]
        keys = None if request.greedy else [message.request.noise_keys[row] for message, row in batch]
        started_s, self._serving_since_s = time.time(), time.monotonic()
        act = functools.partial(self._policy.act, observations, noise_keys=keys, temperature=request.temperature)
        actions, error = None, None
        try:
            actions = await asyncio.get_running_loop().run_in_executor(self._thread, act)
        except Exception as raised:  # noqa: BLE001  whatever it is, whoever waits for an answer must hear of it
            error = raised
        now_s = time.monotonic()
        seconds, self._serving_since_s = now_s - self._serving_since_s, None
        self._batcher.finished(seconds, now_s)
        self._count_batch(seconds, len(batch))
        for message, positions in _by_message(batch):
            message.num_open -= len(positions)
            message.error = error
            if actions is not None:
                message.rows += [batch[position][1] for position in positions]
                message.parts.append(rows_of(actions, positions))
            message.news.set()
        if self._tracing:
            self._trace.append(TraceEvent("batch", self._name, started_s, started_s + seconds, str(len(batch))))
        self._serve()

    def _count_queue(self, queue: int) -> None:
        counters = self._counters
        self._counters = dataclasses.replace(
            counters, queue_rows=counters.queue_rows + queue, queue_max=max(counters.queue_max, queue)
        )

    def _count_batch(self, seconds: float, rows: int) -> None:
        counters = self._counters
        self._counters = dataclasses.replace(
            counters,
            busy_s=counters.busy_s + seconds,
            num_batches=counters.num_batches + 1,
            num_rows=counters.num_rows + rows,
        )


def _by_message(batch: list[tuple[_Message, int]]) -> list[tuple[_Message, list[int]]]:
    """Each message once, with the positions of its rows in the batch."""
    positions: dict[_Message, list[int]] = {}
    for position, (message, _) in enumerate(batch):
        positions.setdefault(message, []).append(position)
    return list(positions.items())

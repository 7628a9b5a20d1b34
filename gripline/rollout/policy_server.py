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
from dataclasses import dataclass

import numpy as np
import ray

from gripline.config import RolloutConfig
from gripline.rollout import wire
from gripline.rollout.batching import Batcher, Request
from gripline.rollout.messages import (
    PolicyCounters,
    ServedPolicy,
    control,
    drained,
    rows_of,
    this_node,
)
from gripline.rollout.trace import TraceEvent
from gripline.types import ActionBatch, Observation


@dataclass(frozen=True, eq=False, slots=True)
class _Message:
    """Observations of one worker, each answered with the batch that it is computed in."""

    sender: wire.Connection
    number: int
    """The sender's own."""
    observations: list[Observation]
    noise_keys: list[tuple[int, int]]
    """(spec.noise_seed, chunk index)."""
    greedy: bool
    temperature: float


class PolicyServer:
    """Answers observations with action chunks; `gripline.rollout.batching` decides which rows are computed when.

    The policy computes on a thread of its own, so that requests are taken in meanwhile and the next batch knows them.
    Wrap it with a large `max_concurrency` and `concurrency_groups={"control": 1}`. It is loaded there too, when it is
    first needed: a server that loads can already say where it runs.
    """

    _policy: ServedPolicy
    _batcher: Batcher

    def __init__(self, make_policy: Callable[[], ServedPolicy], config: RolloutConfig, name: str = "policy 0") -> None:
        """name: of the server in timelines."""
        self._name = name
        self._make_policy = make_policy
        self._loaded = False
        self._colocated = config.layout == "colocated"
        self._thread = ThreadPoolExecutor(1)
        self._rows: dict[int, tuple[_Message, int]] = {}
        """Rows that wait, by number: their message and their place in it."""
        self._address: asyncio.Future[wire.Address] | None = None
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._serving_since_s: float | None = None
        self._counters = PolicyCounters()
        self._tracing = False
        self._trace: deque[TraceEvent] = deque()

    async def ready(self) -> bool:
        """Answers once the policy is loaded; a failure to load reaches whoever waits for this."""
        if not self._loaded:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._load)
        return True

    async def set_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Take over the learner's weights, after the batch in work."""
        await self.ready()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._policy.load_weights, weights)

    @control
    async def node(self) -> str:
        """Its machine; answered as soon as it has one."""
        return this_node()

    async def address(self) -> wire.Address:
        """Where observations are sent to, once the policy is loaded."""
        await self.ready()
        if self._address is None:
            host = ray.util.get_node_ip_address()
            self._address = asyncio.ensure_future(wire.listen(host, self._received, lambda connection: None))
        return await asyncio.shield(self._address)

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

    def _load(self) -> None:
        if not self._loaded:
            self._policy = self._make_policy()
            self._batcher = Batcher(self._policy.batch_sizes, colocated=self._colocated)
            self._loaded = True

    def _received(self, sender: wire.Connection, body: wire.Body, arrays: list[np.ndarray]) -> None:
        """The two arrays of an observation follow one another."""
        seen = zip(arrays[::2], arrays[1::2], body["instructions"], strict=True)
        observations = [Observation(images_NHWC, proprio_P, text) for images_NHWC, proprio_P, text in seen]
        keys = [(seed, chunk) for seed, chunk in body["noise_keys"]]
        message = _Message(sender, body["number"], observations, keys, body["greedy"], body["temperature"])
        mode = (message.greedy, message.temperature)
        rows = []
        for row, (seat, (_, chunk)) in enumerate(zip(body["seats"], keys, strict=True)):
            number = next(self._numbers)
            self._rows[number] = (message, row)
            rows.append(Request(number, (sender.peer, seat), mode, continues=chunk > 0))
        self._batcher.arrived(rows, time.monotonic())
        self._serve()

    def _serve(self) -> None:
        """Start the next batch if it is time for it."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        queue = self._batcher.num_waiting
        batch, again_s = self._batcher.next_batch(time.monotonic())
        if batch:
            self._count_queue(queue)
            rows = [self._rows.pop(request.number) for request in batch]
            task = loop.create_task(self._tell(rows, self._compute(rows)))
            self._serving.add(task)  # the loop itself holds tasks only weakly
            task.add_done_callback(self._serving.discard)
        elif math.isfinite(again_s):
            self._timer = loop.call_later(again_s, self._serve)

    def _compute(self, batch: list[tuple[_Message, int]]) -> asyncio.Future[ActionBatch]:
        first = batch[0][0]
        observations = [message.observations[row] for message, row in batch]
        keys = None if first.greedy else [message.noise_keys[row] for message, row in batch]
        act = functools.partial(self._policy.act, observations, noise_keys=keys, temperature=first.temperature)
        self._serving_since_s = time.monotonic()
        return asyncio.get_running_loop().run_in_executor(self._thread, act)

    async def _tell(self, batch: list[tuple[_Message, int]], computing: asyncio.Future[ActionBatch]) -> None:
        """When a batch is computed, start the next one, answer those who wait, then think about what comes after."""
        assert self._serving_since_s is not None
        since_s, actions, error = self._serving_since_s, None, ""
        started_s = time.time() - (time.monotonic() - since_s)
        try:
            actions = await computing
        except Exception as raised:  # noqa: BLE001  whatever it is, whoever waits for an answer must hear of it
            error = f"{type(raised).__name__}: {raised}"
        now_s = time.monotonic()
        seconds, self._serving_since_s = now_s - since_s, None
        self._batcher.finished(seconds, now_s)
        self._count_batch(seconds, len(batch))
        if self._tracing:
            self._trace.append(TraceEvent("batch", self._name, started_s, started_s + seconds, str(len(batch))))
        self._serve()
        self._answer(batch, actions, error)
        self._batcher.replan(time.monotonic())
        self._serve()  # unless it was started above

    def _answer(self, batch: list[tuple[_Message, int]], actions: ActionBatch | None, error: str) -> None:
        for message, positions in _by_message(batch):
            rows = [batch[position][1] for position in positions]
            body = {"number": message.number, "rows": rows, "queue": self._batcher.num_waiting, "error": error}
            part = None if actions is None else rows_of(actions, positions)
            arrays = [] if part is None else [part.tokens_BKA, part.actions_BKA, part.logprobs_BKA]
            message.sender.send(body, arrays)

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

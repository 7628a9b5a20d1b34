"""The machine of a policy server: its promises under random orders of events, and how fast slots are served by it."""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gripline.rollout.batching import Batcher, Request

SIZES = (4, 8, 12, 16, 24, 32)


class Server(RuleBasedStateMachine):
    """Slots ask, are answered, fall silent and ask again, in random orders and at random times."""

    @initialize(colocated=st.booleans(), sizes=st.sampled_from([(1, 2, 3), SIZES, (32,)]))
    def begin(self, colocated: bool, sizes: tuple[int, ...]) -> None:
        self.batcher, self.sizes = Batcher(sizes, colocated=colocated), sizes
        self.now_s = 0.0
        self.waiting: list[Request] = []
        self.serving: list[Request] = []
        self.numbers = itertools.count()
        self.again_s = math.inf

    @rule(seconds=st.floats(0, 0.3))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(slots=st.sets(st.integers(0, 20), min_size=1), mode=st.integers(0, 1), continues=st.booleans())
    def ask(self, slots: set[int], mode: int, continues: bool) -> None:
        busy = {request.slot for request in self.waiting + self.serving}
        requests = [Request(next(self.numbers), slot, mode, continues) for slot in sorted(slots - busy)]
        self.batcher.arrived(requests, self.now_s)
        self.waiting += requests

    @rule()
    def decide(self) -> None:
        batch, self.again_s = self.batcher.next_batch(self.now_s)
        assert not (batch and self.serving), "two batches at once"
        if self.serving or not self.waiting:
            assert not batch and self.again_s == math.inf
        elif not batch:
            assert 0 < self.again_s < math.inf, "requests wait and nothing will happen"
        else:
            assert len(batch) <= max(self.sizes) and len(batch) <= self.batcher.cap
            same_mode = [request for request in self.waiting if request.mode == self.waiting[0].mode]
            assert batch == same_mode[: len(batch)], "not the front of the line"
            self.waiting = [request for request in self.waiting if request not in batch]
            self.serving = batch

    @precondition(lambda self: self.serving)
    @rule(seconds=st.floats(1e-4, 0.2))
    def finish(self, seconds: float) -> None:
        self.now_s += seconds
        self.batcher.finished(seconds, self.now_s)
        self.batcher.replan(self.now_s)
        self.serving = []

    @invariant()
    def none_is_lost(self) -> None:
        assert self.batcher.num_waiting == len(self.waiting)
        assert 1 <= self.batcher.cap <= max(self.sizes)

    def teardown(self) -> None:
        """Every request is answered, though nobody asks any more, and none waits for long."""
        for _ in range(3 * len(self.waiting) + 3):
            if self.serving:
                self.finish(0.01)
            self.decide()
            if not self.serving and self.waiting:
                self.now_s += self.again_s
                self.decide()
                waited = 0
                while not self.serving:
                    waited += 1
                    assert waited < 100, "it waits for ever"
                    self.now_s += self.again_s
                    self.decide()
        assert not self.waiting and not self.serving


TestRandomOrders = Server.TestCase
TestRandomOrders.settings = settings(deadline=None, max_examples=100, stateful_step_count=50)


class Greedy:
    """The reference: whatever waits is the next batch."""

    def __init__(self) -> None:
        self.waiting: list[Request] = []
        self.busy = False

    def arrived(self, requests: list[Request], now_s: float) -> None:
        self.waiting += requests

    def next_batch(self, now_s: float) -> tuple[list[Request], float]:
        if self.busy:
            return [], math.inf
        batch, self.waiting = self.waiting, []
        self.busy = bool(batch)
        return batch, math.inf

    def finished(self, seconds: float, now_s: float) -> None:
        self.busy = False

    def replan(self, now_s: float) -> None:
        """It has no plan."""


def closed_network(
    server: Batcher | Greedy,
    *,
    think_s: Callable[[], float],
    latency_s: Callable[[int], float],
    num_slots: int = 32,
    num_chunks: int = 128,
) -> float:
    """Virtual seconds until slots that think, ask and wait for a batch have had so many chunks each, on average."""
    left = num_slots * num_chunks
    order, numbers = itertools.count(), itertools.count()
    events = [(0.0, next(order), "ask", slot) for slot in range(num_slots)]
    serving: list[int] = []
    seconds = now_s = 0.0
    asked_before: set[int] = set()
    while left > 0:
        now_s, _, kind, slot = heapq.heappop(events)
        if kind == "ask":
            server.arrived([Request(next(numbers), slot, "greedy", slot in asked_before)], now_s)
            asked_before.add(slot)
        elif kind == "done":
            server.finished(seconds, now_s)
            server.replan(now_s)
            left -= len(serving)
            for answered in serving:
                heapq.heappush(events, (now_s + think_s(), next(order), "ask", answered))
        if events and events[0][0] <= now_s:  # what happens at the same time is known before anything is decided
            continue
        batch, again_s = server.next_batch(now_s)
        if batch:
            serving = [int(str(request.slot)) for request in batch]
            seconds = latency_s(len(batch))
            heapq.heappush(events, (now_s + seconds, next(order), "done", -1))
        elif again_s < math.inf:
            heapq.heappush(events, (now_s + again_s, next(order), "wake", -1))
    return now_s


def affine(rows: int) -> float:
    return 0.02 + 0.002 * rows


def padded(rows: int) -> float:
    return affine(next(size for size in SIZES if size >= rows))


def log_normal(mean_s: float, sigma: float) -> Callable[[], float]:
    chance = random.Random(0)
    return lambda: mean_s * chance.lognormvariate(-(sigma**2) / 2, sigma)


EVERY_SIZE = tuple(range(1, 65))


def test_equal_simulators_do_not_fall_into_lock_step() -> None:
    """512 chunks a slot: at best 32 slots share batches of 11, three in a cycle of 0.124 s. Greedy batching holds all
    slots in two halves that wait for each other, or in lock-step."""
    capped = closed_network(
        Batcher(EVERY_SIZE, colocated=False), think_s=lambda: 0.08, latency_s=affine, num_chunks=512
    )
    greedy = closed_network(Greedy(), think_s=lambda: 0.08, latency_s=affine, num_chunks=512)
    assert abs(capped / 64 - 1) < 0.05
    assert abs(greedy / 84 - 1) < 0.01, "the reference is not what it was"


@pytest.mark.parametrize(
    ("jitter", "at_most"),
    [("transport", 0.92), ("sigma 0.05", 0.96), ("sigma 0.25", 1.03), ("sigma 0.5", 1.03), ("sigma 1", 1.03)],
)
@pytest.mark.parametrize(("sizes", "latency_s"), [(EVERY_SIZE, affine), (SIZES, padded)])
def test_jitter_does_not_make_it_worse_than_greedy(
    sizes: tuple[int, ...], latency_s: Callable[[int], float], jitter: str, at_most: float
) -> None:
    """A cap alone is no better than greedy as soon as slots of a cohort arrive a millisecond apart."""

    def think_s() -> Callable[[], float]:
        chance = random.Random(0)
        if jitter == "transport":
            return lambda: 0.08 + chance.expovariate(1 / 0.001)
        return log_normal(0.08, float(jitter.split()[1]))

    ours = closed_network(Batcher(sizes, colocated=False), think_s=think_s(), latency_s=latency_s)
    greedy = closed_network(Greedy(), think_s=think_s(), latency_s=latency_s)
    assert ours / greedy < at_most


@settings(deadline=None, max_examples=25)
@given(
    think_s=st.floats(0.005, 1),
    base_s=st.floats(0.001, 0.1),
    row_s=st.floats(0, 0.01),
    num_slots=st.integers(1, 40),
    sigma=st.sampled_from([0.0, 0.02, 0.5]),
)
def test_it_is_not_worse_than_greedy_whatever_things_cost(
    think_s: float, base_s: float, row_s: float, num_slots: int, sigma: float
) -> None:
    """Catches: a rule that is right for the base case only."""

    def run(server: Batcher | Greedy) -> float:
        return closed_network(
            server,
            think_s=log_normal(think_s, sigma),
            latency_s=lambda rows: base_s + row_s * rows,
            num_slots=num_slots,
            num_chunks=100,
        )

    assert run(Batcher(EVERY_SIZE, colocated=False)) < 1.1 * run(Greedy())


def test_simulators_faster_than_the_policy_are_served_together() -> None:
    """A batch takes 0.2 s whatever its size, a chunk 0.05 s. Greedy batching serves half of the slots while the others
    wait: 0.4 s a cycle. All in one batch: 0.25 s."""

    def seconds(server: Batcher | Greedy) -> float:
        chance = random.Random(0)
        think_s = lambda: 0.05 + chance.expovariate(1 / 0.001)  # noqa: E731
        return closed_network(server, think_s=think_s, latency_s=lambda rows: 0.2, num_slots=16, num_chunks=100)

    assert seconds(Greedy()) > 38
    assert seconds(Batcher(EVERY_SIZE, colocated=False)) < 27


def test_a_slow_first_batch_is_forgotten() -> None:
    """Catches: a size that is never tried again because its first batch loaded kernels."""

    def run(num_chunks: int) -> float:
        seen: set[int] = set()

        def latency_s(rows: int) -> float:
            cold = rows not in seen
            seen.add(rows)
            return padded(rows) + 2.0 * cold

        server = Batcher(SIZES, colocated=False)
        return closed_network(server, think_s=lambda: 0.08, latency_s=latency_s, num_chunks=num_chunks)

    assert run(1024) - run(512) < 1.05 * 64


def test_colocated_waits_for_the_cap_until_nobody_else_can_come() -> None:
    batcher = Batcher(SIZES, colocated=True)
    numbers = itertools.count()

    def ask(*slots: int, at_s: float) -> None:
        batcher.arrived([Request(next(numbers), slot, "greedy", True) for slot in slots], at_s)

    def serve(at_s: float) -> list[object]:
        batch, _ = batcher.next_batch(at_s)
        if batch:
            batcher.finished(0.004, at_s + 0.004)
            batcher.replan(at_s + 0.004)
        return [request.slot for request in batch]

    ask(*range(8), at_s=0.0)
    assert serve(0.0) == list(range(8)), "nothing is known yet: no reason to wait"
    ask(*range(8), at_s=0.024)  # 20 ms of think time
    assert serve(0.024)
    ask(0, 1, at_s=0.040)
    assert serve(0.040) == []
    ask(2, 3, at_s=0.041)
    assert serve(0.041) == [0, 1, 2, 3], "half of the slots: the others work while these are served"
    ask(4, at_s=0.046)
    ask(5, at_s=0.047)
    assert serve(0.049) == []
    assert serve(0.0505) == [4, 5], "they have waited for as long as a full batch takes"
    assert batcher.cap == 4, "one batch for all would be shorter, and simulators and policy would take turns"
    ask(6, at_s=1.0)
    assert serve(1.0) == [6], "the others have ended"


def test_resets_are_not_think_time() -> None:
    """Catches: a cap for the pace of episodes instead of chunks, where two of three requests come after a reset."""

    def cap(reset_s: float) -> int:
        batcher, numbers, now_s = Batcher(EVERY_SIZE, colocated=False), itertools.count(), 0.0
        for resets in [True, True, False] * 20:
            now_s += reset_s if resets else 0.08
            batcher.arrived([Request(next(numbers), slot, "greedy", not resets) for slot in range(32)], now_s)
            while batcher.num_waiting:
                batch, again_s = batcher.next_batch(now_s)
                now_s += affine(len(batch)) if batch else again_s
                if batch:
                    batcher.finished(affine(len(batch)), now_s)
                    batcher.replan(now_s)
        return batcher.cap

    assert cap(10.0) == cap(0.08) < 32


def test_modes_do_not_mix_and_none_starves() -> None:
    batcher = Batcher((4,), colocated=False)
    line = deque([Request(number, number, number % 2, False) for number in range(12)])
    batcher.arrived(line, 0.0)
    served = []
    while batcher.num_waiting:
        batch, _ = batcher.next_batch(0.0)
        assert len({request.mode for request in batch}) == 1
        served.append([request.number for request in batch])
        batcher.finished(0.01, 0.0)
        batcher.replan(0.0)
    assert served == [[0, 2, 4, 6], [1, 3, 5, 7], [8, 10], [9, 11]]

"""Which waiting requests a policy server computes next, and when, as a state machine: no threads, no Ray, no clock.

Serving whatever waits keeps S slots in lock-step when all simulators take equally long: every request meets the same
batch, and policy and simulators take turns. So batches are capped, at the size that makes the cycle of a slot shortest
according to what was measured: the policy's seconds for each batch size, and the think time from an answer to the same
slot's next request. docs/decisions/0022 has the numbers.

Shape letters: S live slots, W samples, C candidates, H waiting times.
"""

import math
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

BATCHES_REMEMBERED = 64
THINK_TIMES_REMEMBERED = 256
SAME = 0.03
"""Caps whose cycles differ by less are as good as each other; then the largest is taken, which has the most room for
slots that are not as regular as the model."""
KEPT = 0.85
"""Disaggregated: waiting may cost so much of the planned rows per second; slots are never as regular as the plan."""
HORIZONS = 8
"""Waiting times that are weighed up."""
SHORTEST_WAIT_S = 1e-4
PATIENCE = 1.0
"""Colocated: nobody waits for company longer than so many times what a full batch takes to compute."""


@dataclass(frozen=True, slots=True)
class Request:
    """One observation that waits for actions."""

    number: int
    """The caller's handle; used once."""
    slot: Hashable
    """Who asks. A slot asks again some time after it was answered: that is how the think time is known."""
    mode: Hashable
    """How actions are chosen. Requests of different modes never share a batch."""
    continues: bool
    """False for the first request of an episode: the time before it was spent on more than one chunk."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the measurements say. Seconds of one cycle: from a slot's request to its next one."""

    cap: int
    cycle_s: float


class Batcher:
    """Each request is in exactly one batch; batches are taken from the front of the line, at most `cap` at a time."""

    def __init__(self, batch_sizes: Sequence[int], *, colocated: bool) -> None:
        """batch_sizes: the sizes that batches are padded to; no batch is larger than the largest.

        colocated: do policy and simulators share cores or a GPU? Then a small batch takes time away from the
        simulators, and it is worth waiting for the cap.
        """
        self._sizes = np.array(sorted(batch_sizes))
        self._colocated = colocated
        self._waiting: deque[tuple[Request, float]] = deque()
        self._serving: list[Request] = []
        self._answered_s: dict[Hashable, float] = {}
        """Slots that think, and since when, in the order of their answers."""
        self._latencies: deque[tuple[int, float]] = deque(maxlen=BATCHES_REMEMBERED)
        self._thinks: deque[float] = deque(maxlen=THINK_TIMES_REMEMBERED)
        self._think_W = np.zeros(0)
        self._curve: tuple[list[int], list[float]] = ([0], [0.0])
        """Batch sizes that were used lately, with 0 before them, and their median seconds."""
        self._plan: Plan | None = None
        self._idle_since_s = -math.inf

    @property
    def num_waiting(self) -> int:
        """Requests that are in no batch yet."""
        return len(self._waiting)

    @property
    def cap(self) -> int:
        """Rows of a batch at most."""
        return int(self._sizes[-1]) if self._plan is None else self._plan.cap

    def arrived(self, requests: Iterable[Request], now_s: float) -> None:
        """These wait from now on, behind those that wait already."""
        for request in requests:
            answered_s = self._answered_s.pop(request.slot, None)
            if answered_s is not None and request.continues:
                self._thinks.append(now_s - answered_s)
            self._waiting.append((request, now_s))

    def next_batch(self, now_s: float) -> tuple[list[Request], float]:
        """(what to compute now, seconds after which to ask again if that is nothing and nothing happens before).

        `finished` must be called before the next batch can be formed.
        """
        if self._serving or not self._waiting:
            return [], math.inf
        mode = self._waiting[0][0].mode
        ready = sum(request.mode == mode for request, _ in self._waiting)
        wait_s = self._wait_s(ready, now_s) if ready < self.cap else 0.0
        if wait_s > 0:
            return [], wait_s
        left: deque[tuple[Request, float]] = deque()
        for request, since_s in self._waiting:
            if request.mode == mode and len(self._serving) < self.cap:
                self._serving.append(request)
            else:
                left.append((request, since_s))
        self._waiting = left
        return list(self._serving), math.inf

    def finished(self, seconds: float, now_s: float) -> None:
        """The batch that `next_batch` gave is answered; computing it took so long. `replan` soon after."""
        for request in self._serving:
            self._answered_s.pop(request.slot, None)  # to the end of the order
            self._answered_s[request.slot] = now_s
        self._latencies.append((int(self._padded(np.array(len(self._serving)))), seconds))
        self._serving = []
        self._idle_since_s = now_s

    def replan(self, now_s: float) -> None:
        """Learn from what happened. It takes a millisecond, so do it when nobody waits for it."""
        self._curve = self._measured_curve()
        self._think_W = np.sort(self._thinks)
        self._forget_ended(now_s)
        self._plan = self._best_plan(len(self._answered_s) + len(self._waiting) + len(self._serving))

    def _forget_ended(self, now_s: float) -> None:
        """A slot that thinks for longer than any did lately is not coming back: its worker has no more episodes."""
        if len(self._think_W):
            for slot, answered_s in list(self._answered_s.items()):
                if now_s - answered_s <= self._think_W[-1]:
                    break
                del self._answered_s[slot]

    def _wait_s(self, ready: int, now_s: float) -> float:
        """How long to wait for more company before it is worth another thought; 0: it is not worth waiting."""
        if self._plan is None or not len(self._think_W):
            return 0.0
        self._forget_ended(now_s)
        if not self._answered_s:
            return 0.0
        if self._colocated:
            left_s = PATIENCE * self._one_latency_s(self._plan.cap) - (now_s - self._waiting[0][1])
            return left_s if left_s > SHORTEST_WAIT_S else 0.0
        return self._wait_for_company_s(ready, self._plan, now_s)

    def _wait_for_company_s(self, ready: int, plan: Plan, now_s: float) -> float:
        """Wait if the policy, idle until then, still serves about as many rows per second as the plan says.

        Otherwise slots that are a little apart, or whose think time is shorter than a batch, would be served in smaller
        groups than planned, and stay in them.
        """
        rows_per_s = KEPT * (len(self._answered_s) + len(self._waiting)) / plan.cycle_s
        longest_s = plan.cap / rows_per_s - self._one_latency_s(plan.cap)
        left_s = longest_s - (now_s - max(self._idle_since_s, self._waiting[0][1]))
        if left_s < SHORTEST_WAIT_S:
            return 0.0
        horizon_H = np.linspace(0, left_s, HORIZONS + 1)[1:]
        rows_H = np.minimum(ready + self._expected_H(horizon_H, now_s), plan.cap)
        rate_H = rows_H / (horizon_H + self._latency_s(np.ceil(rows_H)))
        worthwhile = rate_H.max() >= max(rows_per_s, ready / self._one_latency_s(ready))
        return max(longest_s / HORIZONS, SHORTEST_WAIT_S) if worthwhile else 0.0

    def _expected_H(self, horizon_H: np.ndarray, now_s: float) -> np.ndarray:
        """How many of the thinking slots will have asked by then, judged by the think times seen lately."""
        think_W = self._think_W
        age_S1 = now_s - np.fromiter(self._answered_s.values(), float)[:, None]
        before_S1 = np.searchsorted(think_W, age_S1)
        by_then_SH = np.searchsorted(think_W, age_S1 + horizon_H, side="right")
        expected_H: np.ndarray = ((by_then_SH - before_S1) / np.maximum(len(think_W) - before_S1, 1)).sum(0)
        return expected_H

    def _measured_curve(self) -> tuple[list[int], list[float]]:
        by_size: dict[int, list[float]] = {0: [0.0]}
        for size, seconds in self._latencies:
            by_size.setdefault(size, []).append(seconds)
        sizes = sorted(by_size)
        return sizes, [median(by_size[size]) for size in sizes]

    def _padded(self, rows_C: np.ndarray) -> np.ndarray:
        padded_C: np.ndarray = self._sizes[np.searchsorted(self._sizes, rows_C)]
        return padded_C

    def _latency_s(self, rows_C: np.ndarray) -> np.ndarray:
        """Seconds for batches of so many rows, padded. Between sizes that were measured lately: interpolated.

        Beyond them: no more than the nearest and not proportionally less, so that what is not known gets tried.
        """
        sizes, curve_s = self._curve
        seconds_C: np.ndarray = np.interp(self._padded(rows_C), sizes, curve_s)
        return seconds_C

    def _one_latency_s(self, rows: int) -> float:
        return float(self._latency_s(np.array([rows]))[0])

    def _best_plan(self, num_live: int) -> Plan | None:
        """The cap with the shortest cycle, and of about equal ones the largest.

        A cycle with S slots in batches of b lasts max(seconds for all S rows, think + l(b)).
        """
        if not len(self._think_W) or not num_live:
            return None
        think_s = float(np.median(self._think_W))
        fewest = 2 if self._colocated and num_live > 1 else 1  # with one, simulators and policy would take turns
        share_C = np.minimum(-(-num_live // np.arange(fewest, num_live + 1)), self._sizes[-1])
        cap_C = np.unique(np.minimum(self._padded(share_C), num_live))[::-1]  # rows up to the padded size cost nothing
        full_s = self._latency_s(cap_C)
        rest_C = num_live % cap_C
        all_s = num_live // cap_C * full_s + np.where(rest_C > 0, self._latency_s(np.maximum(rest_C, 1)), 0.0)
        cycle_C = np.maximum(all_s, think_s + full_s)
        if self._colocated:
            cycle_C = cycle_C + all_s  # a second that the policy computes is one that the simulators lose
        best = int(np.argmax(cycle_C <= cycle_C.min() * (1 + SAME)))
        return Plan(int(cap_C[best]), float(cycle_C[best]))

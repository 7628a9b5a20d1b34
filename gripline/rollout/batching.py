"""Which waiting requests a policy server computes next, and when, as a state machine: no threads, no Ray, no clock.

Serving whatever waits keeps S slots in lock-step when all simulators take equally long: every request meets the same
batch, and policy and simulators take turns. So batches are capped, at the size that makes the cycle of a slot shortest
according to what was measured: the policy's seconds for each batch size, and the think time from an answer to the same
slot's next request. docs/decisions/0022 has the numbers.

Shape letters: S live slots, W samples, C candidates.
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
PATIENCE = 2.0
"""Colocated: nobody waits longer than so many think times for company."""


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
        self._plan: Plan | None = None

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
        """The batch that `next_batch` gave is answered; computing it took so long."""
        for request in self._serving:
            self._answered_s.pop(request.slot, None)  # to the end of the order
            self._answered_s[request.slot] = now_s
        self._latencies.append((int(self._padded(np.array(len(self._serving)))), seconds))
        self._serving = []
        self._think_W = np.sort(self._thinks)
        self._forget_ended(now_s)
        self._plan = self._best_plan(len(self._answered_s) + len(self._waiting))

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
            waited_s = now_s - self._waiting[0][1]
            return max(0.0, PATIENCE * float(np.median(self._think_W)) - waited_s)
        rate = self._worthwhile_rate(ready, self._plan)
        return 0.25 / rate if self._expected(1 / rate, now_s) >= 1 else 0.0

    def _worthwhile_rate(self, ready: int, plan: Plan) -> float:
        """Arrivals per second from which on waiting pays: only those of slots that move as a group reach it.

        Waiting for dt costs each of the `ready` rows dt. It spares those that arrive meanwhile about the seconds of the
        batch that they would miss, but for the X dt that arrive in any period: (λ - X) l(ready) > ready.
        """
        rows_per_s = (len(self._answered_s) + len(self._waiting)) / plan.cycle_s
        return rows_per_s + ready / float(self._latency_s(np.array([ready]))[0])

    def _expected(self, horizon_s: float, now_s: float) -> float:
        """How many of the thinking slots will ask within the horizon, judged by the think times seen lately."""
        age_S = now_s - np.fromiter(self._answered_s.values(), float)
        before_S = np.searchsorted(self._think_W, age_S)
        soon_S = np.searchsorted(self._think_W, age_S + horizon_s, side="right")
        return float(((soon_S - before_S) / np.maximum(len(self._think_W) - before_S, 1)).sum())

    def _padded(self, rows_C: np.ndarray) -> np.ndarray:
        padded_C: np.ndarray = self._sizes[np.searchsorted(self._sizes, rows_C)]
        return padded_C

    def _latency_s(self, rows_C: np.ndarray) -> np.ndarray:
        """Seconds for batches of so many rows, padded. Between sizes that were measured lately: interpolated.

        Beyond them: no more than the nearest and not proportionally less, so that what is not known gets tried.
        """
        by_size: dict[int, list[float]] = {}
        for size, seconds in self._latencies:
            by_size.setdefault(size, []).append(seconds)
        sizes = sorted(by_size)
        curve_s = [median(by_size[size]) for size in sizes]
        seconds_C: np.ndarray = np.interp(self._padded(rows_C), [0, *sizes], [0.0, *curve_s])
        return seconds_C

    def _best_plan(self, num_live: int) -> Plan | None:
        """The cap with the shortest cycle, and of about equal ones the largest.

        A cycle with S slots in batches of b lasts max(seconds for all S rows, think + l(b)).
        """
        if not len(self._think_W) or not num_live:
            return None
        think_s = float(np.median(self._think_W))
        share_C = np.minimum(-(-num_live // np.arange(1, num_live + 1)), self._sizes[-1])
        cap_C = np.unique(np.minimum(self._padded(share_C), num_live))[::-1]  # rows up to the padded size cost nothing
        full_s = self._latency_s(cap_C)
        rest_C = num_live % cap_C
        all_s = num_live // cap_C * full_s + np.where(rest_C > 0, self._latency_s(np.maximum(rest_C, 1)), 0.0)
        cycle_C = np.maximum(all_s, think_s + full_s)
        if self._colocated:
            cycle_C = cycle_C + all_s  # a second that the policy computes is one that the simulators lose
        best = int(np.argmax(cycle_C <= cycle_C.min() * (1 + SAME)))
        return Plan(int(cap_C[best]), float(cycle_C[best]))

"""The rollout of a cost model without any machinery: a discrete-event simulation in which messages take no time.

It keeps the engine's rules (slots, spares, a core that a worker's simulators share) and leaves the choices to the
caller, so it shows what a batching rule alone costs, and tests the bounds against arbitrary choices.
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from cost_model import CostModel


@dataclass
class Episode:
    """One that has been handed to a worker."""

    number: int
    worker: int
    chunk: int = 0


class Choices(Protocol):
    """What a schedule decides."""

    def batch(self, waiting: list[Episode]) -> list[Episode]:
        """A replica is free: the rows that it serves now, in any number. None: it looks again at the next event."""

    def job(self, jobs: list[tuple[str, Episode]]) -> int:
        """The shared core of a worker is free: which of ('step' or 'reset', episode) it does next."""


@dataclass
class FirstCome:
    """Batches of up to `cap` rows in order of arrival, at once; steps before resets, in order of arrival."""

    cap: int

    def batch(self, waiting: list[Episode]) -> list[Episode]:
        """The rows that have waited longest."""
        return waiting[: self.cap]

    def job(self, jobs: list[tuple[str, Episode]]) -> int:
        """The step that has waited longest, otherwise the reset that has."""
        return next((index for index, (kind, _) in enumerate(jobs) if kind == "step"), 0)


def best_first_come_s(model: CostModel) -> float:
    """The shortest makespan of `FirstCome` over caps that split the slots into 1 to 8 cohorts."""
    caps = sorted({math.ceil(model.slots / cohorts) for cohorts in range(1, 9)})
    return min(makespan_s(model, FirstCome(cap)) for cap in caps)


def makespan_s(model: CostModel, choices: Choices) -> float:
    """Seconds until the last episode has ended."""
    simulation = _Simulation(model, choices)
    return simulation.run()


@dataclass
class _Worker:
    held: int = 0
    acting: int = 0
    core_free: bool = True
    jobs: list[tuple[str, Episode]] = field(default_factory=list)
    parked: deque[Episode] = field(default_factory=deque)


class _Simulation:
    def __init__(self, model: CostModel, choices: Choices) -> None:
        self._model, self._choices = model, choices
        self._line = deque(range(model.episodes))
        self._workers = [_Worker() for _ in range(model.env_workers)]
        self._waiting: list[Episode] = []
        self._free_replicas = model.policy_replicas
        self._events: list[tuple[float, int, str, list[Episode]]] = []
        self._now_s = 0.0
        self._counter = 0

    def run(self) -> float:
        self._hand_out()
        while self._events:
            self._now_s, _, kind, episodes = heapq.heappop(self._events)
            self._happened(kind, episodes)
            if not self._events or self._events[0][0] > self._now_s:  # everything of this moment is known
                self._serve()
        assert not self._line and not self._waiting, "the simulation stopped before its end"
        return self._now_s

    def _happened(self, kind: str, episodes: list[Episode]) -> None:
        if kind == "batch":
            self._free_replicas += 1
            for episode in episodes:
                self._work("step", episode)
            return
        (episode,) = episodes
        worker = self._workers[episode.worker]
        if kind == "reset":
            worker.parked.append(episode)
        else:
            episode.chunk += 1
            if episode.chunk < self._model.all_costs[episode.number].num_chunks:
                self._waiting.append(episode)
            else:
                worker.acting -= 1
                worker.held -= 1
                self._hand_out()
        while worker.parked and worker.acting < self._model.slots_per_worker:
            worker.acting += 1
            self._waiting.append(worker.parked.popleft())
        if self._model.serial:
            worker.core_free = True
            self._use_core(worker)

    def _hand_out(self) -> None:
        room = self._model.slots_per_worker + self._model.spare_slots
        while self._line:
            index = min(range(len(self._workers)), key=lambda index: self._workers[index].held)
            if self._workers[index].held == room:
                return
            self._workers[index].held += 1
            self._work("reset", Episode(self._line.popleft(), index))

    def _work(self, kind: str, episode: Episode) -> None:
        if not self._model.serial:
            self._later(self._seconds(kind, episode), kind, [episode])
            return
        worker = self._workers[episode.worker]
        worker.jobs.append((kind, episode))
        self._use_core(worker)

    def _use_core(self, worker: _Worker) -> None:
        if worker.core_free and worker.jobs:
            kind, episode = worker.jobs.pop(self._choices.job(worker.jobs))
            worker.core_free = False
            self._later(self._seconds(kind, episode), kind, [episode])

    def _seconds(self, kind: str, episode: Episode) -> float:
        if kind == "reset":
            return self._model.reset_s
        return float(self._model.all_costs[episode.number].step_s_T[episode.chunk])

    def _serve(self) -> None:
        while self._free_replicas and self._waiting:
            rows = self._choices.batch(self._waiting)
            if not rows and not self._events:  # nothing else will ever happen
                rows = self._waiting
            if not rows:
                return
            taken = {row.number for row in rows}
            self._waiting = [row for row in self._waiting if row.number not in taken]
            self._free_replicas -= 1
            self._later(self._model.batch_s(len(rows)), "batch", rows)

    def _later(self, seconds: float, kind: str, episodes: list[Episode]) -> None:
        self._counter += 1
        heapq.heappush(self._events, (self._now_s + seconds, self._counter, kind, list(episodes)))

"""Which episode runs on which worker, as a state machine: no threads, no Ray, no clock.

What happened goes in as a method call, what is to be done comes out as a list of actions. Episodes are numbered in the
order in which they are added and end exactly once each: by `episode_ended`, or by `Drop` or `GiveUp`. Workers are known
by numbers of the caller's choice; one that replaces another has a number of its own.

A worker that dies takes all its episodes with it, though only one of them can be to blame. So an episode that was near
too many deaths waits until a worker is empty and runs there alone: only if that one dies too has the episode failed.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Start:
    """Run this episode on this worker."""

    worker: int
    index: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ask the worker to end this episode early; its row still comes back, as `episode_ended`."""

    worker: int
    index: int


@dataclass(frozen=True, slots=True)
class Drop:
    """The episode was cancelled and has ended: it never started, or what it ran on is gone."""

    index: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The episode has ended as an error of the infrastructure."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Replace:
    """Start another worker in place of this one, and report it with `worker_joined`."""

    worker: int


@dataclass(frozen=True, slots=True)
class ReplaceReplica:
    """Start another policy server in place of this one."""

    replica: int


@dataclass(frozen=True, slots=True)
class Stop:
    """The fault budget is spent: nothing more can be expected of this rollout."""

    reason: str


Action = Start | Cancel | Drop | GiveUp | Replace | ReplaceReplica | Stop


@dataclass(slots=True)
class _Episode:
    """One that has not ended."""

    worker: int | None = None
    failures: int = 0
    """Times that it failed by its own doing."""
    deaths: int = 0
    """Workers that died while it ran there with others."""
    useless: bool = False


@dataclass(slots=True)
class _Worker:
    capacity: int
    running: dict[int, None] = field(default_factory=dict)
    alone: bool = False
    """Runs a quarantined episode, and nothing beside it."""
    load_in_room: int | None = None
    """Under which load `_Room` holds this worker; None: it can take nothing."""


class _Room:
    """The workers that can take an episode, least loaded first. Constant time, spread over the calls."""

    def __init__(self) -> None:
        self._by_load: list[OrderedDict[int, None]] = []
        self._lowest = 0

    def add(self, worker: int, load: int) -> None:
        while len(self._by_load) <= load:
            self._by_load.append(OrderedDict())
        self._by_load[load][worker] = None
        self._lowest = min(self._lowest, load)

    def remove(self, worker: int, load: int) -> None:
        del self._by_load[load][worker]

    def least_loaded(self) -> tuple[int, int] | None:
        """(worker, load) of the one that has waited longest among the least loaded."""
        while self._lowest < len(self._by_load):
            workers = self._by_load[self._lowest]
            if workers:
                return next(iter(workers)), self._lowest
            self._lowest += 1
        return None


class Schedule:
    """See the module's docstring. Every call costs constant time, but for a fault and for what it returns.

    Faults are lost workers, simulators that raised and lost policy servers; whatever is lost with one machine is one
    fault. An episode fails when it raised (or hung) `max_tries` times, or when the worker on which it ran alone died.
    """

    def __init__(self, *, max_tries: int, fault_budget: int) -> None:
        self._max_tries = max_tries
        self._shared_deaths = max(1, max_tries - 1)
        self._fault_budget = fault_budget
        self._workers: dict[int, _Worker] = {}
        self._room = _Room()
        self._draining: int | None = None
        """A worker that gets nothing more until it is empty, for a quarantined episode."""
        self._episodes: dict[int, _Episode] = {}
        self._line: deque[int] = deque()
        self._quarantine: deque[int] = deque()
        self._num_added = 0
        self._useless_ahead: set[int] = set()
        self.faults: Counter[str] = Counter()
        """How often 'worker lost', 'simulator failed', 'policy server lost' and 'machine lost' happened."""
        self._lost_nodes: set[str] = set()
        self.num_retries = 0
        """Episodes that were put back into the line."""

    @property
    def num_open(self) -> int:
        """Episodes that have not ended, whether they run or wait."""
        return len(self._episodes)

    @property
    def has_room(self) -> bool:
        """Could the next episode start at once?"""
        return not self._peek(self._line) and self._room.least_loaded() is not None

    def running_on(self, worker: int) -> list[int]:
        """The episodes that a worker is busy with."""
        return list(self._workers[worker].running)

    def add(self) -> list[Action]:
        """The next episode stands at the end of the line."""
        index = self._num_added
        self._num_added += 1
        if index in self._useless_ahead:
            self._useless_ahead.remove(index)
            return [Drop(index)]
        self._episodes[index] = _Episode()
        self._line.append(index)
        return self._fill()

    def worker_joined(self, worker: int, capacity: int) -> list[Action]:
        """A worker is ready for `capacity` episodes at once (slots and spares)."""
        if worker in self._workers or capacity < 1:
            raise ValueError(
                f"worker {worker} with capacity {capacity}: numbers are used once, capacities are positive"
            )
        self._workers[worker] = _Worker(capacity)
        self._place(worker)
        return self._fill()

    def worker_lost(self, worker: int, reason: str, *, node: str = "") -> list[Action]:
        """A worker died or never got ready. Nobody knows which of its episodes, if any, is to blame.

        node: its machine, if that is gone: then no episode is to blame.
        """
        return self._lose(worker, reason, guilty=None, node=node)

    def deadline_passed(self, worker: int, index: int, reason: str) -> list[Action]:
        """A worker is given up because this episode's simulator hangs in it; the other episodes are not to blame."""
        return self._lose(worker, reason, guilty=index)

    def episode_ended(self, worker: int, index: int) -> list[Action]:
        """A row came back: a success, a failure, or a cancelled episode."""
        self._release(worker, index)
        del self._episodes[index]
        return self._fill()

    def episode_failed(self, worker: int, index: int, reason: str) -> list[Action]:
        """The episode's simulator raised; its worker goes on."""
        self._release(worker, index)
        self.faults["simulator failed"] += 1
        return self._stop(reason) or [*self._blame(index, reason), *self._fill()]

    def replica_lost(self, replica: int, reason: str, *, node: str = "") -> list[Action]:
        """A policy server died or does not answer. The requests that it held wait for another. node: as above."""
        self._count_loss("policy server lost", node)
        return self._stop(reason) or [ReplaceReplica(replica)]

    def useless(self, indices: Iterable[int]) -> list[Action]:
        """These episodes can certainly not be used any more, whether they run, wait or have not been added yet."""
        actions: list[Action] = []
        for index in indices:
            episode = self._episodes.get(index)
            if episode is None:
                if index >= self._num_added:
                    self._useless_ahead.add(index)
            elif episode.worker is None:
                actions.append(self._drop(index))
            elif not episode.useless:
                episode.useless = True
                actions.append(Cancel(episode.worker, index))
        return actions + self._fill()

    def _count_loss(self, kind: str, node: str) -> None:
        if not node:
            self.faults[kind] += 1
        elif node not in self._lost_nodes:
            self._lost_nodes.add(node)
            self.faults["machine lost"] += 1

    def _lose(self, worker: int, reason: str, guilty: int | None, node: str = "") -> list[Action]:
        lost = self._workers.pop(worker, None)
        self._count_loss("worker lost", node)
        stop = self._stop(reason)
        if stop:
            return stop
        actions: list[Action] = [Replace(worker)]
        if lost is not None:
            self._forget(worker, lost)
            for index in reversed(lost.running):  # each goes to the front: their order is kept
                self._episodes[index].worker = None
                actions += self._retry(index) if node else self._after_death(index, reason, guilty, alone=lost.alone)
        return actions + self._fill()

    def _after_death(self, index: int, reason: str, guilty: int | None, *, alone: bool) -> list[Action]:
        episode = self._episodes[index]
        if index == guilty:
            return self._blame(index, reason)
        if alone and not episode.useless:
            return [self._give_up(index, reason)]
        if guilty is None:
            episode.deaths += 1
        return self._retry(index)

    def _blame(self, index: int, reason: str) -> list[Action]:
        episode = self._episodes[index]
        episode.failures += 1
        if episode.failures >= self._max_tries and not episode.useless:
            return [self._give_up(index, reason)]
        return self._retry(index)

    def _retry(self, index: int) -> list[Action]:
        episode = self._episodes[index]
        if episode.useless:
            return [self._drop(index)]
        self.num_retries += 1
        (self._quarantine if episode.deaths >= self._shared_deaths else self._line).appendleft(index)
        return []

    def _give_up(self, index: int, reason: str) -> Action:
        del self._episodes[index]
        return GiveUp(index, reason)

    def _drop(self, index: int) -> Action:
        del self._episodes[index]  # from the line it vanishes when its turn comes
        return Drop(index)

    def _stop(self, reason: str) -> list[Action]:
        """[Stop] once more faults have happened than a rollout may have."""
        if self.faults.total() <= self._fault_budget:
            return []
        counts = ", ".join(f"{count} × {kind}" for kind, count in self.faults.items())
        return [Stop(f"{counts}; the last: {reason}")]

    def _fill(self) -> list[Action]:
        actions: list[Action] = []
        while (start := self._start_alone() or self._start_beside_others()) is not None:
            actions.append(start)
        return actions

    def _start_beside_others(self) -> Start | None:
        least = self._room.least_loaded()
        if least is None or not self._peek(self._line):
            return None
        return self._start(least[0], self._line.popleft())

    def _start_alone(self) -> Start | None:
        """A quarantined episode on an empty worker. Where none is, one is emptied, or fresh work would starve it."""
        if not self._peek(self._quarantine):
            self._drain(None)
            return None
        worker = self._draining
        if worker is None or self._workers[worker].running:
            least = self._room.least_loaded()
            worker = least[0] if least is not None and least[1] == 0 else None
        if worker is not None:
            self._drain(None)  # the next one can have this worker too
            self._workers[worker].alone = True
            return self._start(worker, self._quarantine.popleft())
        if self._draining is None and self._workers:
            self._drain(min(self._workers, key=self._busyness))
        return None

    def _busyness(self, worker: int) -> tuple[int, bool]:
        """Order in which workers are emptied: where one runs alone already, nothing else is held up."""
        state = self._workers[worker]
        return len(state.running), not state.alone

    def _drain(self, worker: int | None) -> None:
        before, self._draining = self._draining, worker
        for each in (before, worker):
            if each is not None:
                self._place(each)

    def _start(self, worker: int, index: int) -> Start:
        self._workers[worker].running[index] = None
        self._episodes[index].worker = worker
        self._place(worker)
        return Start(worker, index)

    def _release(self, worker: int, index: int) -> None:
        """Raises KeyError for an episode that this worker does not run."""
        state = self._workers[worker]
        del state.running[index]
        self._episodes[index].worker = None
        state.alone = False
        self._place(worker)

    def _forget(self, worker: int, lost: _Worker) -> None:
        if lost.load_in_room is not None:
            self._room.remove(worker, lost.load_in_room)
        if worker == self._draining:
            self._draining = None

    def _place(self, worker: int) -> None:
        """List the worker under its present load, or nowhere if it can take nothing."""
        state = self._workers[worker]
        load = len(state.running)
        takes = load < state.capacity and not state.alone and worker != self._draining
        if state.load_in_room is not None:
            self._room.remove(worker, state.load_in_room)
        state.load_in_room = load if takes else None
        if takes:
            self._room.add(worker, load)

    def _peek(self, line: deque[int]) -> bool:
        """Does anybody wait there? Those who were dropped meanwhile leave it here."""
        while line and line[0] not in self._episodes:
            line.popleft()
        return bool(line)

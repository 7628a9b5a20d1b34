"""Which simulator of an environment worker runs next, as a state machine: no threads, no Ray, no clock.

A worker holds more episodes than may act at a time. An episode is reset, then it acts if a seat is free or is parked
with its first observation until one is, then it is stepped each time its actions have come, until it ends.
"""

import heapq
from collections import deque
from dataclasses import dataclass
from typing import Literal

Job = Literal["reset", "step"]


@dataclass(slots=True)
class _Episode:
    state: Literal["queued", "resetting", "parked", "waiting", "ready", "stepping"]
    """waiting: for actions; ready: has them and waits for a thread."""
    seat: int | None = None
    """Which of the acting episodes it is; None before it acts."""


class Slots:
    """The episodes of one worker, known by numbers of the caller's choice.

    Jobs run on `num_threads` threads at most, and no episode has two at a time. They are served in the order in which
    they became possible. Only a reset that is not urgent, because enough episodes act without it, stands behind all
    others: it runs when nothing else could.
    """

    def __init__(self, *, num_seats: int, num_threads: int) -> None:
        """num_seats: episodes that act at the same time."""
        self._num_seats = num_seats
        self._free_threads = num_threads
        self._free_seats = list(range(num_seats))
        self._episodes: dict[int, _Episode] = {}
        self._num_resetting = 0
        self._queued: deque[tuple[int, int]] = deque()
        """(order of arrival, episode) for those to be reset."""
        self._ready: deque[tuple[int, int]] = deque()
        self._parked: deque[int] = deque()
        self._num_arrivals = 0

    @property
    def num_acting(self) -> int:
        """Episodes that have been reset, hold a seat and have not ended."""
        return self._num_seats - len(self._free_seats)

    def seat(self, episode: int) -> int:
        """The seat of an acting episode, below `num_seats`; who follows it sits there next."""
        seat = self._episodes[episode].seat
        if seat is None:
            raise ValueError(f"episode {episode} does not act yet")
        return seat

    def accept(self, episode: int) -> None:
        """A new episode, to be reset."""
        if episode in self._episodes:
            raise ValueError(f"episode {episode} is already here")
        self._episodes[episode] = _Episode("queued")
        self._queued.append((self._arrival(), episode))

    def next_job(self) -> tuple[Job, int] | None:
        """What to run now on a free thread; None: nothing can run. Report the end with `reset_done` or `step_done`."""
        if not self._free_threads:
            return None
        urgent = self.num_acting + self._num_resetting < self._num_seats
        reset_first = self._queued and (not self._ready or (urgent and self._queued[0] < self._ready[0]))
        if reset_first:
            _, episode = self._queued.popleft()
            self._episodes[episode].state = "resetting"
            self._num_resetting += 1
            self._free_threads -= 1
            return "reset", episode
        if self._ready:
            _, episode = self._ready.popleft()
            self._episodes[episode].state = "stepping"
            self._free_threads -= 1
            return "step", episode
        return None

    def reset_done(self, episode: int) -> bool:
        """Its first observation is there. True: it acts, so ask for actions; False: it is parked."""
        self._leave(episode, "resetting")
        self._num_resetting -= 1
        self._free_threads += 1
        if self._free_seats:
            self._sit_down(episode)
            return True
        self._episodes[episode].state = "parked"
        self._parked.append(episode)
        return False

    def answered(self, episode: int) -> None:
        """Its actions have come."""
        self._leave(episode, "waiting")
        self._episodes[episode].state = "ready"
        self._ready.append((self._arrival(), episode))

    def step_done(self, episode: int) -> None:
        """The chunk was executed: ask for the next actions, or `end` it."""
        self._leave(episode, "stepping")
        self._free_threads += 1
        self._episodes[episode].state = "waiting"

    def end(self, episode: int) -> int | None:
        """The episode leaves: it ended, failed, or is not wanted any more. If it had a job, that is over as well.

        Returns the parked episode that acts from now on, so ask for its actions; None if there is none.
        """
        left = self._episodes.pop(episode)
        if left.state in ("resetting", "stepping"):
            self._free_threads += 1
            self._num_resetting -= left.state == "resetting"
        elif left.state == "parked":
            self._parked.remove(episode)
        elif left.state in ("queued", "ready"):
            line = self._queued if left.state == "queued" else self._ready
            line.remove(next(entry for entry in line if entry[1] == episode))
        if left.seat is None:
            return None
        heapq.heappush(self._free_seats, left.seat)
        if not self._parked:
            return None
        promoted = self._parked.popleft()
        self._sit_down(promoted)
        return promoted

    def _sit_down(self, episode: int) -> None:
        state = self._episodes[episode]
        state.seat = heapq.heappop(self._free_seats)
        state.state = "waiting"

    def _arrival(self) -> int:
        self._num_arrivals += 1
        return self._num_arrivals

    def _leave(self, episode: int, state: str) -> None:
        found = self._episodes[episode].state
        if found != state:
            raise ValueError(f"episode {episode} is {found}, not {state}")

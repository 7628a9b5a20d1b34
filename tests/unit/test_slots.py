"""The machine of an env worker, driven through random orders of events, and its rules one by one."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gripline.rollout.slots import Slots


class Worker(RuleBasedStateMachine):
    """Drives `Slots` as the actor does, in random orders, and checks what must hold at every moment."""

    @initialize(num_seats=st.integers(1, 4), num_spares=st.integers(0, 3), num_threads=st.integers(1, 6))
    def begin(self, num_seats: int, num_spares: int, num_threads: int) -> None:
        self.slots = Slots(num_seats=num_seats, num_threads=num_threads)
        self.num_seats, self.num_places, self.num_threads = num_seats, num_seats + num_spares, num_threads
        self.num_accepted = 0
        self.running: dict[int, str] = {}
        self.queued: list[int] = []
        self.asked: list[int] = []
        self.parked: list[int] = []
        self.ready: list[int] = []
        self.arrived: list[int] = []
        """Those that are queued or ready, in the order in which they became it."""

    def here(self) -> list[int]:
        return [*self.queued, *self.asked, *self.parked, *self.ready, *self.running]

    @precondition(lambda self: len(self.here()) < self.num_places)
    @rule()
    def accept(self) -> None:
        self.slots.accept(self.num_accepted)
        self.queued.append(self.num_accepted)
        self.arrived.append(self.num_accepted)
        self.num_accepted += 1

    def resets_first(self) -> bool:
        """In the order in which they became possible; but a reset for which no seat is free waits for all steps."""
        if not (self.queued and self.ready):
            return bool(self.queued)
        resetting = sum(job == "reset" for job in self.running.values())
        seat_is_free = self.slots.num_acting + resetting < self.num_seats
        return seat_is_free and self.arrived.index(self.queued[0]) < self.arrived.index(self.ready[0])

    @rule()
    def start_what_can_run(self) -> None:
        while (job := self.slots.next_job()) is not None:
            kind, episode = job
            assert kind == ("reset" if self.resets_first() else "step")
            line = self.queued if kind == "reset" else self.ready
            assert episode == line.pop(0), "not first come, first served"
            assert episode not in self.running
            self.running[episode] = kind
            self.arrived.remove(episode)
        idle = len(self.running) < self.num_threads
        assert not (idle and (self.ready or self.queued)), "a thread idles although something could run"

    @precondition(lambda self: self.running)
    @rule(data=st.data(), over=st.booleans())
    def finish(self, data: st.DataObject, over: bool) -> None:
        """A step or reset is done, and with it the episode if `over`: success, or an exception."""
        episode = data.draw(st.sampled_from(sorted(self.running)))
        if over:
            self.end(episode)
        elif self.running.pop(episode) == "step":
            self.slots.step_done(episode)
            self.asked.append(episode)
        else:
            (self.asked if self.slots.reset_done(episode) else self.parked).append(episode)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.receive(data.draw(st.sampled_from(self.asked)))

    def receive(self, episode: int) -> None:
        self.asked.remove(episode)
        self.slots.answered(episode)
        self.ready.append(episode)
        self.arrived.append(episode)

    @precondition(lambda self: set(self.here()) - set(self.running))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(sorted(set(self.here()) - set(self.running)))))

    def end(self, episode: int) -> None:
        self.running.pop(episode, None)
        for line in (self.queued, self.asked, self.parked, self.ready, self.arrived):
            if episode in line:
                line.remove(episode)
        promoted = self.slots.end(episode)
        if promoted is not None:
            assert promoted == self.parked.pop(0), "the oldest parked episode is not the first"
            self.asked.append(promoted)

    @invariant()
    def seats(self) -> None:
        acting = [*self.asked, *self.ready, *(each for each, job in self.running.items() if job == "step")]
        assert len(acting) == self.slots.num_acting <= self.num_seats
        assert len({self.slots.seat(each) for each in acting}) == len(acting), "two on one seat"
        assert not self.parked or len(acting) == self.num_seats, "a spare waits although a seat is free"
        assert len(self.running) <= self.num_threads

    def teardown(self) -> None:
        """Whatever happened, all that is left comes to its end."""
        for _ in range(4 * len(self.here())):
            self.start_what_can_run()
            for episode, job in list(self.running.items()):
                if job == "step":
                    self.end(episode)
                else:
                    self.running.pop(episode)
                    (self.asked if self.slots.reset_done(episode) else self.parked).append(episode)
            for episode in list(self.asked):
                self.receive(episode)
        assert not self.here() and self.slots.num_acting == 0


TestRandomOrders = Worker.TestCase
TestRandomOrders.settings = settings(deadline=None, max_examples=100, stateful_step_count=60)


def acting(slots: Slots, *episodes: int) -> None:
    for episode in episodes:
        slots.accept(episode)
        assert slots.next_job() == ("reset", episode)
        assert slots.reset_done(episode)


def test_resets_are_urgent_until_all_seats_are_taken() -> None:
    slots = Slots(num_seats=2, num_threads=1)
    for episode in range(3):
        slots.accept(episode)
    assert slots.next_job() == ("reset", 0) and slots.reset_done(0)
    slots.answered(0)
    assert slots.next_job() == ("reset", 1), "it came before the step"
    assert slots.reset_done(1)
    assert slots.next_job() == ("step", 0), "no seat is free for episode 2"
    slots.step_done(0)
    assert slots.next_job() == ("reset", 2), "nothing has actions"
    assert not slots.reset_done(2)
    assert slots.next_job() is None


def test_a_parked_episode_takes_over_the_seat() -> None:
    slots = Slots(num_seats=1, num_threads=1)
    acting(slots, 7)
    for episode in (8, 9):
        slots.accept(episode)
        assert slots.next_job() == ("reset", episode) and not slots.reset_done(episode)
    slots.answered(7)
    assert slots.next_job() == ("step", 7)
    slots.step_done(7)
    assert slots.end(7) == 8 and slots.seat(8) == 0
    slots.answered(8)
    assert slots.next_job() == ("step", 8)
    assert slots.end(8) == 9, "it raised while stepping"
    assert slots.end(9) is None and slots.num_acting == 0


def test_a_spare_that_is_due_goes_before_younger_steps() -> None:
    """Catches: a reset that waits for ever behind steps although its seat is free."""
    slots = Slots(num_seats=2, num_threads=1)
    acting(slots, 0, 1)
    slots.accept(2)
    slots.answered(0)
    assert slots.next_job() == ("step", 0)
    slots.step_done(0)
    assert slots.end(0) is None
    slots.answered(1)
    assert slots.next_job() == ("reset", 2)


def test_what_does_not_fit_is_refused() -> None:
    slots = Slots(num_seats=1, num_threads=1)
    slots.accept(0)
    with pytest.raises(ValueError, match="already here"):
        slots.accept(0)
    with pytest.raises(ValueError, match="is queued, not waiting"):
        slots.answered(0)
    with pytest.raises(ValueError, match="does not act"):
        slots.seat(0)

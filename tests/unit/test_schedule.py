"""The driver's state machine, against random orders of events: who ends when, who raises, which worker dies."""

import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gripline.rollout.schedule import Cancel, Drop, GiveUp, Replace, ReplaceReplica, Schedule, Start, Stop


class World:
    """Workers that obey the schedule and check every order they get. What happens next is drawn from a seed."""

    def __init__(self, seed, *, specs, workers, capacity, max_tries=3, fault_budget=10**6, **trouble):
        self.rng = random.Random(seed)
        self.schedule = Schedule(max_tries=max_tries, fault_budget=fault_budget)
        self.to_add, self.added, self.capacity = specs, 0, capacity
        self.kills, self.raises = trouble.pop("kills", set()), trouble.pop("raises", set())
        self.hangs, self.useless = trouble.pop("hangs", set()), trouble.pop("useless", set())
        self.random_deaths = trouble.pop("random_deaths", 0)
        assert not trouble
        self.running: dict[int, set[int]] = {}
        self.joining = list(range(workers))
        self.names = workers
        self.first_starts: list[int] = []
        self.ended: dict[int, str] = {}
        self.cancelled: set[int] = set()
        self.raised: Counter[int] = Counter()
        self.company: dict[int, list[int]] = {}
        self.stopped = ""

    def obey(self, actions):
        for action in actions:
            match action:
                case Start(worker, index):
                    self._start(worker, index)
                case Cancel(worker, index):
                    assert index in self.running[worker] and index not in self.cancelled
                    self.cancelled.add(index)
                case Drop(index):
                    assert index in self.useless
                    self.end(index, "dropped")
                case GiveUp(index, reason):
                    self.end(index, reason)
                case Replace(worker):
                    assert worker not in self.running
                    self.joining.append(self.names)
                    self.names += 1
                case Stop(reason):
                    self.stopped = reason
                    return

    def _start(self, worker, index):
        assert index not in self.ended and all(index not in running for running in self.running.values())
        assert index < self.added and index not in self.cancelled
        if index not in self.first_starts:
            self.first_starts.append(index)
        self.running[worker].add(index)
        assert len(self.running[worker]) <= self.capacity
        self.company[index] = sorted(self.running[worker] - {index})

    def end(self, index, how):
        assert index not in self.ended
        self.ended[index] = how

    def add(self):
        self.to_add -= 1
        self.added += 1
        self.obey(self.schedule.add())

    def join(self):
        worker = self.joining.pop(self.rng.randrange(len(self.joining)))
        self.running[worker] = set()
        self.obey(self.schedule.worker_joined(worker, self.capacity))

    def lose(self, worker, reason, hanging=None):
        before = self.running.pop(worker)
        if hanging is None:
            self.obey(self.schedule.worker_lost(worker, reason))
        else:
            self.obey(self.schedule.deadline_passed(worker, hanging, reason))
        return before

    def finish(self, worker, index):
        """What this episode does when its time has come."""
        if index in self.kills and index not in self.cancelled:
            self.lose(worker, f"killed by {index}")
        elif index in self.hangs:
            self.lose(worker, f"hung in {index}", hanging=index)
        else:
            self.running[worker].remove(index)
            if index in self.raises:
                self.raised[index] += 1
                self.obey(self.schedule.episode_failed(worker, index, f"raised by {index}"))
            else:
                self.end(index, "cancelled" if index in self.cancelled else "row")
                self.obey(self.schedule.episode_ended(worker, index))

    def step(self):
        """One random event; False when nothing can happen any more."""
        pairs = [(worker, index) for worker, running in self.running.items() for index in running]
        events = ["add"] * bool(self.to_add) + ["join"] * bool(self.joining) + ["finish"] * (2 * bool(pairs))
        events += ["death"] * bool(self.random_deaths and self.running) + ["useless"] * (self.rng.random() < 0.1)
        if not set(events) & {"add", "join", "finish"}:
            return False
        match self.rng.choice(events):
            case "add":
                self.add()
            case "join":
                self.join()
            case "finish":
                self.finish(*self.rng.choice(pairs))
            case "death":
                self.random_deaths -= 1
                self.lose(self.rng.choice(list(self.running)), "power cut")
            case "useless":
                some = self.rng.sample(sorted(self.useless), self.rng.randint(0, len(self.useless)))
                self.obey(self.schedule.useless(some))
        return True

    def run(self, *, limit=20_000):
        for _ in range(limit):
            if self.stopped or not self.step():
                return self
            self.check_nobody_idles()
        raise AssertionError("it never ends")

    def check_nobody_idles(self):
        """While nothing went wrong, an episode waits only if every worker is full."""
        waiting = self.added - len(self.ended) - sum(map(len, self.running.values()))
        if waiting and not self.schedule.faults:
            assert all(len(running) == self.capacity for running in self.running.values())


SEED = st.integers(0, 10**6)
SIZES = {"specs": st.integers(0, 40), "workers": st.integers(1, 5), "capacity": st.integers(1, 5)}
SOME = st.sets(st.integers(0, 39), max_size=4)


@settings(deadline=None, max_examples=300)
@given(seed=SEED, **SIZES)
def test_every_episode_runs_once_in_the_order_of_the_specs(seed, specs, workers, capacity):
    world = World(seed, specs=specs, workers=workers, capacity=capacity).run()
    assert world.ended == dict.fromkeys(range(specs), "row")
    assert world.first_starts == list(range(specs))
    assert not world.schedule.num_open and not world.schedule.num_retries


@settings(deadline=None, max_examples=400)
@given(
    seed=SEED,
    **SIZES,
    max_tries=st.integers(1, 4),
    kills=SOME,
    raises=SOME,
    hangs=SOME,
    useless=st.sets(st.integers(0, 39)),
    random_deaths=st.integers(0, 6),
)
def test_every_episode_ends_once_whatever_goes_wrong(seed, **world):
    specs = world["specs"]
    world = World(seed, **world).run()
    assert sorted(world.ended) == list(range(specs))
    assert not world.schedule.num_open and not any(world.running.values())
    rows = {index for index, how in world.ended.items() if how == "row"}
    assert not rows & (world.kills | world.raises | world.hangs)
    dropped = [index for index, how in world.ended.items() if how == "dropped"]
    assert world.useless.issuperset(dropped)


@settings(deadline=None, max_examples=300)
@given(seed=SEED, **SIZES, max_tries=st.integers(1, 4), kills=SOME, raises=SOME, hangs=SOME)
def test_only_the_guilty_become_errors_and_with_their_own_reason(seed, **world):
    """Poisonous episodes kill their worker whenever they get to run; their neighbours must not pay for it."""
    specs, max_tries = world["specs"], world["max_tries"]
    world = World(seed, **world).run()
    guilty = (world.kills | world.raises | world.hangs) & set(range(specs))
    assert {index for index, how in world.ended.items() if how == "row"} == set(range(specs)) - guilty
    for index in guilty:
        assert world.ended[index].endswith(f" {index}")
    assert all(count <= max_tries for count in world.raised.values())
    for index in world.raises - world.kills - world.hangs:
        if index < specs:
            assert world.raised[index] == max_tries


@pytest.mark.parametrize("seed", range(20))
def test_a_quarantined_episode_does_not_wait_for_ever(seed):
    """Catches: fresh episodes that keep every worker busy, so that none is ever empty."""
    world = World(seed, specs=10**9, workers=3, capacity=4, kills={0})
    for _ in range(3000):
        world.step()
    assert world.ended[0] == "killed by 0"
    assert world.company[0] == []
    assert len(world.ended) > 300


def started(actions):
    return [(action.worker, action.index) for action in actions if isinstance(action, Start)]


def two_workers(num_specs, *, capacity=2, **limits):
    schedule = Schedule(max_tries=limits.get("max_tries", 3), fault_budget=limits.get("fault_budget", 16))
    actions = [*schedule.worker_joined(0, capacity), *schedule.worker_joined(1, capacity)]
    for _ in range(num_specs):
        actions += schedule.add()
    return schedule, started(actions)


def test_workers_are_filled_evenly():
    """Slots before spares: no worker gets its second episode before all have their first."""
    _, starts = two_workers(5)
    assert starts == [(0, 0), (1, 1), (0, 2), (1, 3)]


def test_episodes_of_a_lost_worker_go_to_the_front_of_the_line():
    schedule, _ = two_workers(6)
    assert schedule.worker_lost(0, "killed") == [Replace(0)]
    assert started(schedule.worker_joined(7, 2)) == [(7, 0), (7, 2)]
    assert started(schedule.episode_ended(7, 2)) == [(7, 4)]
    assert schedule.num_retries == 2


def test_an_episode_that_raised_is_tried_again_at_once_and_given_up_with_its_own_reason():
    schedule, _ = two_workers(6)
    for _ in range(2):
        assert schedule.episode_failed(0, 0, "ValueError: no such door") == [Start(0, 0)]
    actions = schedule.episode_failed(0, 0, "ValueError: no such door")
    assert actions == [GiveUp(0, "ValueError: no such door"), Start(0, 4)]


def test_neighbours_of_a_hanging_episode_are_not_suspected():
    schedule, _ = two_workers(4, max_tries=2)
    assert schedule.deadline_passed(0, 0, "reset takes longer than 1 s") == [Replace(0)]
    assert started(schedule.worker_joined(5, 2)) == [(5, 0), (5, 2)]
    actions = schedule.deadline_passed(5, 0, "reset takes longer than 1 s")
    assert actions == [Replace(5), GiveUp(0, "reset takes longer than 1 s")]
    assert started(schedule.worker_joined(6, 2)) == [(6, 2)]


def test_a_busy_worker_is_emptied_for_a_quarantined_episode():
    schedule, _ = two_workers(12, max_tries=2)
    schedule.worker_lost(0, "killed")  # one death is enough: 0 and 2 must run alone
    assert schedule.episode_ended(1, 1) == []  # not refilled
    assert schedule.episode_ended(1, 3) == [Start(1, 0)]
    assert schedule.episode_ended(1, 0) == [Start(1, 2)]
    assert started(schedule.episode_ended(1, 2)) == [(1, 4), (1, 5)]


def test_a_worker_is_emptied_only_where_no_other_runs_quarantined_episodes_already():
    schedule, _ = two_workers(20, max_tries=2)
    schedule.worker_lost(0, "killed")
    assert started(schedule.worker_joined(5, 2)) == [(5, 0)]
    assert started(schedule.episode_ended(1, 1)) == [(1, 4)]
    assert schedule.worker_lost(5, "killed") == [Replace(5), GiveUp(0, "killed")]
    assert schedule.episode_ended(1, 4) == []  # now 2 waits for this one
    assert schedule.episode_ended(1, 3) == [Start(1, 2)]


def test_a_worker_that_was_to_be_emptied_for_nothing_is_filled_again():
    schedule, _ = two_workers(12, max_tries=2)
    schedule.worker_lost(0, "killed")
    assert schedule.episode_ended(1, 1) == []
    assert schedule.useless([0, 2]) == [Drop(0), Drop(2), Start(1, 4)]


def test_what_is_useless_is_dropped_where_it_waits_and_cancelled_where_it_runs():
    schedule, _ = two_workers(6)
    assert schedule.useless([0, 4, 5, 7]) == [Cancel(0, 0), Drop(4), Drop(5)]
    assert schedule.useless([0, 4]) == []
    assert schedule.episode_ended(0, 0) == []
    assert schedule.add() == [Start(0, 6)]
    assert schedule.add() == [Drop(7)]
    assert schedule.useless([2]) == [Cancel(0, 2)]
    assert schedule.worker_lost(0, "killed") == [Replace(0), Drop(2)]


def test_the_fault_budget_stops_the_run_and_says_what_happened():
    schedule, _ = two_workers(6, fault_budget=3)
    assert schedule.episode_failed(0, 0, "ValueError: x") == [Start(0, 0)]
    assert schedule.replica_lost(4, "killed") == [ReplaceReplica(4)]
    assert Replace(0) in schedule.worker_lost(0, "killed")
    expected = "1 × simulator failed, 1 × policy server lost, 2 × worker lost; the last: no answer for 5 s"
    assert schedule.worker_lost(1, "no answer for 5 s") == [Stop(expected)]


def test_what_is_lost_with_one_machine_is_one_fault_and_nobodys_fault():
    """Catches: a pod of eight workers whose loss spends half of the budget, and episodes that are suspected of it."""
    schedule, _ = two_workers(4, fault_budget=2, max_tries=2)
    assert schedule.worker_lost(0, "killed", node="a") == [Replace(0)]
    assert schedule.replica_lost(4, "killed", node="a") == [ReplaceReplica(4)]
    assert schedule.worker_lost(1, "killed", node="a") == [Replace(1)]
    assert dict(schedule.faults) == {"machine lost": 1}
    assert set(started(schedule.worker_joined(7, 4))) == {(7, index) for index in range(4)}  # beside each other
    assert schedule.worker_lost(7, "killed", node="b") == [Replace(7)]
    assert schedule.worker_lost(9, "killed", node="c") == [Stop("3 × machine lost; the last: killed")]


def test_orders_that_make_no_sense_are_refused():
    schedule, _ = two_workers(2)
    with pytest.raises(KeyError):
        schedule.episode_ended(0, 1)
    with pytest.raises(ValueError, match="used once"):
        schedule.worker_joined(0, 2)
    with pytest.raises(ValueError, match="capacity 0"):
        schedule.worker_joined(2, 0)


def seconds_per_event(num_workers, *, capacity=8, num_specs):
    """Every episode ends in random order, and another starts: what a driver does all day."""
    rng = random.Random(0)
    schedule = Schedule(max_tries=3, fault_budget=0)
    running: list[Start] = []
    started_s = time.process_time()
    for worker in range(num_workers):
        schedule.worker_joined(worker, capacity)
    for ended in range(num_specs):
        while schedule.has_room and ended + len(running) < num_specs:
            running += schedule.add()
        position = rng.randrange(len(running))
        running[position], running[-1] = running[-1], running[position]
        done = running.pop()
        running += schedule.episode_ended(done.worker, done.index)
    assert not schedule.num_open
    return (time.process_time() - started_s) / num_specs


def test_an_event_costs_the_same_with_10_000_slots_as_with_80():
    """Catches: a scan over workers or episodes, which would make it about a hundred times as much."""
    few, many = seconds_per_event(10, num_specs=20_000), seconds_per_event(1250, num_specs=40_000)
    assert many < 10 * few

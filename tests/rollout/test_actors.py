"""Env workers and policy servers as real Ray actors, with simulators and policies that do what a test needs."""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import ray
from rollout.counting import Costs, CountingEnv, EchoPolicy

from gripline.config import RolloutConfig
from gripline.rollout.actors import EnvWorker
from gripline.rollout.messages import Decoding, PolicyFailedError, Row
from gripline.rollout.policy_server import PolicyServer
from gripline.types import EpisodeSpec, Trajectory

GREEDY = Decoding(greedy=True)
SAMPLED = Decoding(greedy=False, temperature=1.6, keep_trajectory=True)


def spec(seed: int, **changes: Any) -> EpisodeSpec:
    return EpisodeSpec(
        suite="fake", task="count", instruction="count", init_seed=seed, noise_seed=1000 + seed, split="train"
    ).model_copy(update=changes)


class Rollout:
    """Actors of one test, killed at its end."""

    def __init__(self, costs: Costs, *, workers: int = 1, replicas: int = 1, **config: Any) -> None:
        self.costs = costs
        self.config = RolloutConfig(**({"slots_per_worker": 2, "spare_slots": 1} | config))
        self.actors: list[Any] = []
        self.replicas = [self.new_replica(number) for number in range(replicas)]
        self.workers = [self.new_worker(number) for number in range(workers)]

    def new_replica(self, number: int) -> Any:
        options = ray.remote(num_cpus=0, max_concurrency=1000, concurrency_groups={"control": 1})
        self.actors.append(
            options(PolicyServer).remote(partial(EchoPolicy, self.costs), self.config, f"policy {number}")
        )
        return self.actors[-1]

    def new_worker(self, number: int) -> Any:
        options = ray.remote(num_cpus=0, max_concurrency=100, concurrency_groups={"control": 1})
        self.actors.append(
            options(EnvWorker).remote(partial(CountingEnv, self.costs), self.config, self.replicas, f"worker {number}")
        )
        return self.actors[-1]

    def start(self, worker: int, seed: int, decoding: Decoding = GREEDY) -> tuple[Any, Any]:
        row, trajectory = self.workers[worker].run_episode.options(num_returns=2).remote(spec(seed), decoding)
        return row, trajectory

    def run(self, seeds: list[int], decoding: Decoding = GREEDY) -> list[tuple[Row, Trajectory | None]]:
        """All at once on the first worker."""
        return [ray.get(list(self.start(0, seed, decoding)), timeout=60) for seed in seeds]

    def wait_for(self, condition: Callable[[Any], bool], worker: int = 0) -> Any:
        deadline = time.monotonic() + 30
        while not condition(status := ray.get(self.workers[worker].status.remote(), timeout=30)):
            assert time.monotonic() < deadline, status
            time.sleep(0.02)
        return status


@pytest.fixture
def rollout() -> Iterator[Callable[..., Rollout]]:
    made: list[Rollout] = []

    def make(costs: Costs, **options: Any) -> Rollout:
        made.append(Rollout(costs, **options))
        return made[-1]

    yield make
    for each in made:
        for actor in each.actors:
            ray.kill(actor)


def all_of(rollout: Rollout, seeds: list[int], decoding: Decoding = GREEDY) -> list[tuple[Row, Trajectory | None]]:
    """Dealt out to the workers in turn, all at the same time."""
    started = [rollout.start(place % len(rollout.workers), seed, decoding) for place, seed in enumerate(seeds)]
    return [tuple(ray.get(list(refs), timeout=60)) for refs in started]


def doing(status: Any) -> list[str]:
    return [slot.doing for slot in status.slots]


@pytest.mark.parametrize("parallel_steps", [1, 3])
def test_an_episode_is_what_its_spec_and_the_policy_say(rollout: Callable[..., Rollout], parallel_steps: int) -> None:
    """Catches: answers that reach another slot, wrong noise keys, a lost or doubled chunk, on either kind of thread."""
    run = rollout(Costs(), parallel_steps=parallel_steps)
    for row, trajectory in all_of(run, [4, 5, 6]):
        record = row.record
        seed = record.spec.init_seed
        assert (record.success, record.num_steps, record.num_chunks) == (seed % 2 == 0, 15, 3)
        assert record.actions_TKA == tuple(((seed, chunk, -1, -1, 0, 1),) for chunk in range(3))
        assert trajectory is None and not row.cancelled
    for row, trajectory in all_of(run, [7, 8, 9], SAMPLED):
        seed = row.record.spec.init_seed
        assert row.record.actions_TKA == () and trajectory is not None
        expected = [[[seed, chunk, 1000 + seed, chunk, 0, np.float32(1.6)]] for chunk in range(3)]
        np.testing.assert_array_equal(-trajectory.logprobs_TKA, np.array(expected, np.float32))
        np.testing.assert_array_equal(trajectory.proprio_TP[:, :2], [[seed, chunk] for chunk in range(3)])
        assert trajectory.images_TNHWC.shape == (3, 1, 4, 4, 3) and trajectory.tokens_TKA.shape == (3, 1, 6)


def test_every_layout_gives_the_same_episodes(rollout: Callable[..., Rollout]) -> None:
    """Catches: anything that depends on who shares a batch, and requests that get lost between several replicas."""
    seeds = list(range(20, 28))
    small = rollout(Costs(), slots_per_worker=8, spare_slots=0)
    large = rollout(
        Costs(step_s=0.003, batch_s=0.002),
        workers=2,
        replicas=2,
        slots_per_worker=2,
        spare_slots=2,
        parallel_steps=2,
        layout="disaggregated",
    )
    records = [[row.record for row, _ in all_of(each, seeds)] for each in (small, large)]
    assert records[0] == records[1]
    counters = ray.get([replica.take_counters.remote() for replica in large.replicas])
    assert sum(each.num_rows for each in counters) == len(seeds) * 3
    assert all(each.num_rows for each in counters), "one replica has nothing to do"


def test_ready_observations_travel_and_are_computed_together(rollout: Callable[..., Rollout]) -> None:
    run = rollout(Costs(batch_s=0.05), slots_per_worker=4, spare_slots=0)
    all_of(run, [0, 1, 2, 3])
    counters = ray.get(run.replicas[0].take_counters.remote())
    assert counters.num_rows == 12 and counters.num_batches <= 8
    assert counters.busy_s == pytest.approx(0.05 * counters.num_batches, rel=0.5)
    assert counters.queue_rows >= 12 and 2 <= counters.queue_max <= 4
    assert ray.get(run.replicas[0].take_counters.remote()).num_rows == 0


def test_spares_are_reset_ahead_and_start_without_the_driver(rollout: Callable[..., Rollout]) -> None:
    run = rollout(Costs(reset_s=0.05, step_s=0.1, horizon_chunks=4), slots_per_worker=1, spare_slots=1)
    first, second = run.start(0, 0)[0], run.start(0, 1)[0]
    status = run.wait_for(lambda status: "parked" in doing(status))
    assert sum(slot.doing in ("step", "ready", "waiting") for slot in status.slots) == 1
    rows = ray.get([first, second])
    assert all(row.reset_s >= 0.05 and row.step_s >= 0.4 for row in rows)


@pytest.mark.parametrize("parallel_steps", [1, 2])
def test_a_worker_answers_while_its_simulator_sleeps(rollout: Callable[..., Rollout], parallel_steps: int) -> None:
    """Catches: a hanging simulator that hides itself because the status call waits for it."""
    run = rollout(Costs(step_s=3.0, horizon_chunks=1), parallel_steps=parallel_steps)
    row, _ = run.start(0, 3)
    run.wait_for(lambda status: "step" in doing(status))
    asked = time.monotonic()
    time.sleep(0.5)
    status = ray.get(run.workers[0].status.remote(), timeout=2)
    assert time.monotonic() - asked < 2
    (slot,) = [slot for slot in status.slots if slot.doing == "step"]
    assert 0.5 <= slot.seconds < 3 and slot.key == spec(3).key
    assert ray.get(row).record.num_chunks == 1


def test_a_policy_server_answers_while_it_computes(rollout: Callable[..., Rollout]) -> None:
    run = rollout(Costs(batch_s=2.0, horizon_chunks=1))
    row, _ = run.start(0, 3)
    run.wait_for(lambda status: "waiting" in doing(status))
    time.sleep(0.5)
    assert 0 < ray.get(run.replicas[0].ping.remote(), timeout=1) < 2
    assert run.wait_for(lambda status: True).queue_depth == 1
    assert ray.get(row).record.num_chunks == 1
    assert ray.get(run.replicas[0].ping.remote()) == 0


def test_exceptions_arrive_and_a_simulator_that_raised_is_not_used_again(rollout: Callable[..., Rollout]) -> None:
    run = rollout(Costs(), slots_per_worker=1, spare_slots=0)

    def number_of_simulator() -> float:
        ((row, trajectory),) = run.run([2], SAMPLED)
        assert row.record.success and trajectory is not None
        return float(trajectory.proprio_TP[0, 2])

    assert [number_of_simulator(), number_of_simulator()] == [1, 1]
    for seed, where in ((101, "reset"), (103, "step")):
        with pytest.raises(ArithmeticError, match=f"{where} diverged"):
            run.run([seed])
    assert number_of_simulator() == 3
    with pytest.raises(PolicyFailedError, match="FloatingPointError: logits are not finite"):
        run.run([105])
    assert number_of_simulator() == 3, "the policy's failure is no fault of the simulator"


@pytest.mark.parametrize("state", ["step", "waiting", "parked", "queued"])
def test_cancelled_episodes_end_at_the_next_chunk_boundary(rollout: Callable[..., Rollout], state: str) -> None:
    """The other episodes of the worker are not disturbed, and the slot is free again."""
    costs = {
        "step": Costs(step_s=0.3, horizon_chunks=4),
        "waiting": Costs(batch_s=0.5, horizon_chunks=4),
        "parked": Costs(step_s=0.3, horizon_chunks=4),
        "queued": Costs(reset_s=1.0, horizon_chunks=1),
    }
    parallel_steps = 2 if state == "queued" else 1  # else calls wait in Ray while the reset blocks the event loop
    run = rollout(costs[state], slots_per_worker=1, spare_slots=2, parallel_steps=parallel_steps)
    started = {seed: run.start(0, seed, SAMPLED) for seed in (0, 1, 2)}
    status = run.wait_for(lambda status: state in doing(status))
    key = next(slot.key for slot in status.slots if slot.doing == state)
    run.workers[0].cancel.remote(key)
    run.workers[0].cancel.remote("of nobody")
    for seed, refs in started.items():
        row, trajectory = ray.get(list(refs), timeout=60)
        if spec(seed).key == key:
            assert row.cancelled and trajectory is None and not row.record.success
            assert row.record.num_chunks <= 1 and row.record.num_steps == 5 * row.record.num_chunks
            assert (row.record.num_chunks == 1) == (state == "step")
        else:
            assert not row.cancelled and row.record.num_chunks == run.costs.horizon_chunks
    assert doing(run.wait_for(lambda status: True)) == ["idle"] * 3
    assert ray.get(run.start(0, 5)[0], timeout=60).record.num_chunks == run.costs.horizon_chunks


def test_a_dead_replica_only_delays(rollout: Callable[..., Rollout]) -> None:
    """Catches: requests that die with a policy server."""
    run = rollout(Costs(batch_s=0.3, horizon_chunks=6), slots_per_worker=2)
    rows = [run.start(0, seed)[0] for seed in (0, 1)]
    run.wait_for(lambda status: "waiting" in doing(status))
    ray.kill(run.replicas[0])
    time.sleep(0.5)
    run.workers[0].set_replicas.remote([run.new_replica(1)])
    assert [row.record.num_chunks for row in ray.get(rows, timeout=60)] == [6, 6]


def test_the_living_replica_takes_over(rollout: Callable[..., Rollout]) -> None:
    run = rollout(Costs(batch_s=0.1, horizon_chunks=6), replicas=2, slots_per_worker=3)
    rows = [run.start(0, seed)[0] for seed in (0, 1, 2)]
    run.wait_for(lambda status: "waiting" in doing(status))
    ray.kill(run.replicas[0])
    assert [row.record.num_chunks for row in ray.get(rows, timeout=60)] == [6, 6, 6]


def test_weights_are_taken_over_between_episodes(rollout: Callable[..., Rollout]) -> None:
    run = rollout(Costs(), slots_per_worker=1, spare_slots=0)
    weights = ray.put({"weight": np.array([2.5], np.float32)})
    ray.get(run.replicas[0].set_weights.remote(weights))
    ((row, _),) = run.run([4])
    assert [chunk[0][4] for chunk in row.record.actions_TKA] == [2.5] * 3


def test_the_timeline_holds_every_reset_step_wait_and_batch(rollout: Callable[..., Rollout]) -> None:
    costs = Costs(reset_s=0.02, step_s=0.03, batch_s=0.01)
    run = rollout(costs, slots_per_worker=1, spare_slots=1)
    all_of(run, [0, 1])
    actors = [run.workers[0], run.replicas[0]]
    assert not any(ray.get([actor.take_trace.remote() for actor in actors])), "nobody asked for it"
    began = time.time()
    ray.get([actor.set_tracing.remote(True) for actor in actors])
    all_of(run, [2, 3])
    slots, policy = ray.get([actor.take_trace.remote() for actor in actors])
    events = [event for event in slots if event.start_s > began]
    kinds = [event.kind for event in events]
    assert (kinds.count("reset"), kinds.count("step"), kinds.count("wait"), kinds.count("parked")) == (2, 6, 6, 1)
    assert {event.kind for event in policy} == {"batch"} and sum(int(event.label) for event in policy) == 6
    assert {event.lane for event in slots} == {"worker 0/slot 0", "worker 0/slot 1"} and policy[0].lane == "policy 0"
    assert {event.label for event in events} == {"count 0.0"}
    assert all(began <= event.start_s <= event.end_s <= time.time() + 0.1 for event in events + policy)
    least_s = {"reset": 0.02, "step": 0.03, "wait": 0.01, "parked": 0.0}
    assert all(event.end_s - event.start_s >= 0.9 * least_s[event.kind] for event in events)
    assert not any(ray.get([actor.take_trace.remote() for actor in actors])), "taken once"


def test_warm_up_builds_a_simulator_measures_the_longest_reset_and_needs_no_torch(
    rollout: Callable[..., Rollout],
) -> None:
    class Spy(EnvWorker):
        async def modules(self) -> set[str]:
            import sys

            return {"torch", "transformers"} & set(sys.modules)

    run = rollout(Costs(reset_s=0.1))
    options = ray.remote(num_cpus=0, max_concurrency=9, concurrency_groups={"control": 1})
    spy = options(Spy).remote(partial(CountingEnv, run.costs), run.config, run.replicas)
    run.actors.append(spy)
    answer = ray.get(spy.warm_up.remote([spec(1), spec(2)]))
    assert 0.1 <= answer.reset_s < 2 and answer.pid != os.getpid()
    _, trajectory = ray.get(list(spy.run_episode.options(num_returns=2).remote(spec(3), SAMPLED)))
    assert trajectory.proprio_TP[0, 2] == 1, "the simulator of the warm-up"
    assert not ray.get(spy.modules.remote())

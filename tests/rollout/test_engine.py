"""The engine with real processes that behave: the same episodes on any number of them, cancelling, drawing, weights."""

from functools import partial

import numpy as np
import psutil
import pytest
import ray
from rollout.fakes import ENV, FakePolicy, FaultyToy, episodes

from gripline.config import PolicyConfig, RolloutConfig
from gripline.envs.suites import env_spec
from gripline.errors import UserError
from gripline.policies import build_policy, save_policy
from gripline.rollout.cluster import ray_cluster
from gripline.rollout.engine import RolloutEngine, standard_engine
from gripline.rollout.messages import Decoding

SAMPLED = Decoding(greedy=False, temperature=1.3, keep_trajectory=True)
COUNT = 48


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("pids"))
    config = RolloutConfig(env_workers=2, slots_per_worker=2)
    make_env = partial(FaultyToy, folder, pace_s=0.005)
    with RolloutEngine(make_env, partial(FakePolicy, folder), config, warm_up=episodes(1)) as running:
        yield running


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained policy: nowhere is more left to chance."""
    path = tmp_path_factory.mktemp("policy") / "checkpoint"
    vla = build_policy(PolicyConfig(), env_spec(ENV), instructions=["touch it"], seed=3)
    save_policy(path, vla, env=ENV, stage="sft")
    return str(path)


def trajectories(checkpoint, *, kill=False, **config):
    outcomes = {}
    with standard_engine(ENV, checkpoint, RolloutConfig(**config)) as engine:
        for finished in engine.run(episodes(COUNT), SAMPLED):
            assert finished.index not in outcomes
            outcomes[finished.index] = (finished.record, ray.get(finished.trajectory))
            if kill and len(outcomes) == 5:
                workers = [each for each in psutil.Process().children(recursive=True) if is_worker(each)]
                workers[0].kill()
        assert engine.last.faults == int(kill)
    assert sorted(outcomes) == list(range(COUNT))
    return outcomes


def is_worker(process):
    return process.status() != psutil.STATUS_ZOMBIE and "EnvWorker" in " ".join(process.cmdline())


@pytest.fixture(scope="module")
def calm(checkpoint):
    """What one worker and one policy server make of the episodes."""
    outcomes = trajectories(checkpoint, env_workers=1, slots_per_worker=4)
    assert len({trajectory.tokens_TKA.tobytes() for _, trajectory in outcomes.values()}) == COUNT
    assert all(record.conduct is not None and bool(record.failure) != record.success for record, _ in outcomes.values())
    return outcomes


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "changes",
    [
        {"env_workers": 8, "slots_per_worker": 3, "kill": True},
        {"env_workers": 2, "slots_per_worker": 7, "policy_replicas": 2, "layout": "disaggregated"},
        {"env_workers": 1, "slots_per_worker": 6, "spare_slots": 3, "parallel_steps": 3},
    ],
)
def test_trajectories_are_bit_equal_on_any_number_of_processes(checkpoint, calm, changes):
    other = trajectories(checkpoint, **changes)
    for index, (record, trajectory) in calm.items():
        assert other[index][0] == record
        for name in ("images_TNHWC", "proprio_TP", "tokens_TKA", "logprobs_TKA"):
            mine, theirs = getattr(other[index][1], name), getattr(trajectory, name)
            assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs), name


def test_what_became_useless_is_cancelled_and_never_a_failure(engine):
    first: list[int] = []

    def after_the_third(finished):
        first.append(finished.index)
        return set(range(10, COUNT)) if len(first) >= 3 else set()

    finished = list(engine.run(episodes(COUNT), SAMPLED, useless=after_the_third))
    assert sorted(each.index for each in finished) == list(range(COUNT))
    cancelled = {each.index for each in finished if each.cancelled}
    assert cancelled <= set(range(10, COUNT)) and len(cancelled) > COUNT - 20
    assert all(each.record.error == "cancelled" and each.trajectory is None for each in finished if each.cancelled)
    assert not any(each.record.error for each in finished if not each.cancelled)
    assert engine.last.cancelled == len(cancelled) and engine.last.episodes == COUNT - len(cancelled)
    assert engine.last.resets <= 20


def test_specs_are_drawn_as_slots_fall_free(engine):
    drawn = []

    def draw():
        for spec in episodes(COUNT):
            drawn.append(spec)
            yield spec

    behind = [len(drawn) - ended for ended, _ in enumerate(engine.run(draw(), SAMPLED))]
    assert len(behind) == COUNT and max(behind) <= 2 * 3 + 1


def test_a_rollout_that_nobody_reads_to_its_end_is_no_burden_to_the_next(engine):
    calm = {each.index: each.record for each in engine.run(episodes(COUNT), SAMPLED)}
    for _ in engine.run(episodes(COUNT), SAMPLED):
        break
    after = {each.index: each.record for each in engine.run(episodes(COUNT), SAMPLED)}
    assert after == calm and engine.last.resets == COUNT


def test_new_weights_act_from_the_next_rollout_on(engine):
    def tokens():
        return [
            each.record.num_chunks and ray.get(each.trajectory).tokens_TKA.tobytes()
            for each in sorted(engine.run(episodes(6), SAMPLED), key=lambda each: each.index)
        ]

    before = tokens()
    engine.set_weights({"gain": np.array(0.5)})
    changed = tokens()
    engine.set_weights(ray.put({"gain": np.array(1.0)}))
    assert tokens() == before != changed


def test_no_specs_are_no_work(engine):
    assert list(engine.run([], SAMPLED)) == []


def test_a_recorded_rollout_shows_every_slot_and_every_batch(engine):
    engine.record_trace = True
    list(engine.run(episodes(12), SAMPLED))
    engine.record_trace = False
    kinds = {event.kind for event in engine.trace}
    assert {"reset", "step", "batch"} <= kinds <= {"reset", "step", "wait", "parked", "batch"}
    lanes = {event.lane for event in engine.trace}
    assert {lane.split("/")[0] for lane in lanes} == {"worker 0", "worker 1", "policy 0"}
    assert sum(event.kind == "reset" for event in engine.trace) == 12
    assert all(event.start_s <= event.end_s for event in engine.trace)


def test_a_cluster_without_room_is_told_before_anything_starts():
    with (
        pytest.raises(UserError, match=r"8 of 99 'env', 1 of 2 'learner'.*rollout\.env_workers"),
        ray_cluster(RolloutConfig(env_workers=99), learners=2),
    ):
        raise AssertionError("it started")

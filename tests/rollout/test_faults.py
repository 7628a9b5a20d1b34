"""Real processes die, stop, raise and hang: every episode still ends once, and as it would have ended anyway."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
from rollout.fakes import FakePolicy, FaultyToy, cannot_load, episodes, living

from gripline.config import RolloutConfig
from gripline.errors import UserError
from gripline.rollout.engine import RolloutEngine
from gripline.rollout.messages import Decoding

SAMPLED = Decoding(greedy=False, keep_trajectory=True)
CONFIG = RolloutConfig(
    env_workers=2,
    slots_per_worker=2,
    spare_slots=1,
    reset_timeout_s=2.0,
    step_timeout_s=2.0,
    policy_timeout_s=4.0,
)
COUNT = 20


def start(folder: Path, **changes) -> RolloutEngine:
    config = CONFIG.model_copy(update=changes)
    return RolloutEngine(partial(FaultyToy, str(folder)), partial(FakePolicy, str(folder)), config, warm_up=episodes(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pids")


@pytest.fixture(scope="module")
def engine(folder):
    """It heals, so one will do for all."""
    with start(folder) as running:
        yield running


@pytest.fixture(scope="module")
def calm(engine):
    """What happens when nothing happens."""
    return run(engine, episodes(COUNT))


def run(engine, specs, *, disturb=None, after=4):
    """{index: (record, trajectory)}; `disturb` is called when some episodes have ended."""
    outcomes = {}
    for finished in engine.run(specs, SAMPLED):
        assert finished.index not in outcomes and not finished.cancelled
        kept = None if finished.record.error else ray.get(finished.trajectory)
        outcomes[finished.index] = (finished.record, kept)
        if len(outcomes) == after and disturb is not None:
            disturb()
    assert sorted(outcomes) == list(range(len(specs)))
    return outcomes


def assert_equal(outcomes, calm, *, but=()):
    """Bit by bit, whoever ran it and after however many tries."""
    for index, (record, trajectory) in outcomes.items():
        if index in but:
            continue
        expected, expected_trajectory = calm[index]
        assert (record.success, record.num_steps, record.error) == (expected.success, expected.num_steps, "")
        for name in ("images_TNHWC", "proprio_TP", "tokens_TKA", "logprobs_TKA"):
            mine, theirs = getattr(trajectory, name), getattr(expected_trajectory, name)
            assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs), (index, name)


def wait_until_gone(pid):
    """Ray tries for five seconds to end a process politely, which a stopped one does not hear."""
    deadline_s = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def test_nothing_is_lost_where_nothing_happens(engine, calm):
    assert any(record.success for record, _ in calm.values())
    assert len({trajectory.tokens_TKA.tobytes() for _, trajectory in calm.values()}) == COUNT
    again = run(engine, episodes(COUNT))
    assert_equal(again, calm)
    stats = engine.last
    assert (stats.episodes, stats.resets, stats.retries, stats.faults, stats.dead_steps) == (COUNT, COUNT, 0, 0, 0)
    assert stats.env_steps == sum(record.num_steps for record, _ in calm.values())
    assert 0 < stats.metrics()["rollout/env_busy"] <= 1 and 0 < stats.metrics()["rollout/policy_busy"] <= 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_stops_is_replaced_and_its_episodes_run_again(engine, folder, calm, how):
    victim = living(folder, "worker")[0]
    outcomes = run(engine, episodes(COUNT), disturb=lambda: os.kill(victim, how))
    assert engine.last.faults == 1 and engine.last.retries >= 1
    assert_equal(outcomes, calm)
    wait_until_gone(victim)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_policy_server_that_dies_or_stops_is_replaced(engine, folder, calm, how):
    victim = living(folder, "policy")[0]
    outcomes = run(engine, episodes(COUNT), disturb=lambda: os.kill(victim, how))
    assert engine.last.faults == 1 and engine.last.retries == 0
    assert_equal(outcomes, calm)
    wait_until_gone(victim)


def test_what_died_between_two_rollouts_is_replaced_in_the_next(engine, folder, calm):
    for victim in (living(folder, "worker")[0], living(folder, "policy")[0]):
        os.kill(victim, signal.SIGKILL)
        wait_until_gone(victim)
    assert_equal(run(engine, episodes(COUNT)), calm)
    assert engine.last.faults == 2


def test_a_policy_server_that_is_replaced_acts_with_the_newest_weights(engine, folder, calm):
    """Also when they are set while it is still starting."""
    engine.set_weights({"gain": np.array(0.5)})
    changed = run(engine, episodes(COUNT))
    assert any(changed[index][1].tokens_TKA.tobytes() != calm[index][1].tokens_TKA.tobytes() for index in calm)
    os.kill(living(folder, "policy")[0], signal.SIGKILL)
    assert_equal(run(engine, episodes(COUNT)), changed)
    os.kill(living(folder, "policy")[0], signal.SIGKILL)
    engine.set_weights({"gain": np.array(1.0)})
    assert_equal(run(engine, episodes(COUNT)), calm)


@pytest.mark.parametrize("fault", ["raise in-reset", "raise in-step", "hang in-reset", "hang in-step", "kill in-step"])
def test_a_simulator_that_goes_wrong_once_leaves_no_trace(engine, calm, fault):
    outcomes = run(engine, episodes(COUNT, {3: f"{fault} once"}))
    assert engine.last.faults == 1 and engine.last.retries >= 1
    assert_equal(outcomes, calm)


@pytest.mark.parametrize(
    ("fault", "told"),
    [("raise in-step", "ValueError: raise in episode 3"), ("hang in-reset", "a reset takes longer than 2 s")],
)
def test_a_simulator_that_always_goes_wrong_is_recorded_with_the_reason(engine, calm, fault, told):
    outcomes = run(engine, episodes(COUNT, {3: f"{fault} always"}))
    assert told in outcomes[3][0].error and not outcomes[3][0].success
    assert engine.last.faults == CONFIG.max_tries
    assert_equal(outcomes, calm, but={3})


def test_only_the_poisonous_episode_is_recorded_and_not_its_neighbours(engine, calm):
    outcomes = run(engine, episodes(COUNT, {3: "kill in-step always"}))
    assert "environment worker lost" in outcomes[3][0].error
    assert_equal(outcomes, calm, but={3})


def test_too_many_faults_stop_the_rollout_and_say_what_happened(tmp_path):
    specs = episodes(COUNT, {index: "raise in-step always" for index in range(COUNT)})
    with start(tmp_path, env_workers=1, fault_budget=4) as engine, pytest.raises(UserError) as stopped:
        run(engine, specs)
    assert "rollout.fault_budget" in stopped.value.line and "5 × simulator failed" in stopped.value.line
    assert "ValueError: raise in episode" in stopped.value.line


def test_a_policy_that_fails_stops_the_rollout_at_once(tmp_path):
    specs = [spec.model_copy(update={"instruction": "fail"}) for spec in episodes(3)]
    with start(tmp_path, env_workers=1) as engine, pytest.raises(RuntimeError, match="cannot read that"):
        run(engine, specs)


def test_a_policy_that_cannot_be_loaded_stops_the_start(tmp_path):
    config = CONFIG.model_copy(update={"env_workers": 1})
    with pytest.raises(ray.exceptions.RayError, match="no such checkpoint"):
        RolloutEngine(
            partial(FaultyToy, str(tmp_path)), partial(cannot_load, str(tmp_path)), config, warm_up=episodes(1)
        )


def test_a_deadline_shorter_than_a_reset_is_refused_at_the_start(tmp_path):
    config = CONFIG.model_copy(update={"env_workers": 1, "reset_timeout_s": 0.2})
    make_env = partial(FaultyToy, str(tmp_path), reset_s=0.4)
    with pytest.raises(UserError, match=r"rollout\.reset_timeout_s: is 0\.2 s, but a reset took 0\.[4-9]"):
        RolloutEngine(make_env, partial(FakePolicy, str(tmp_path)), config, warm_up=episodes(1))

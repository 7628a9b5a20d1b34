"""What a rollout cost: shares of capacity, rates, and several rollouts as one."""

import pytest

from gripline.rollout.stats import RolloutStats

FIRST = RolloutStats(
    wall_s=10.0,
    env_capacity_s=20.0,
    policy_capacity_s=10.0,
    episodes=8,
    env_steps=400,
    dead_steps=16,
    reset_s=2.0,
    step_s=13.0,
    policy_busy_s=4.0,
    policy_batches=20,
    policy_rows=60,
    queue_rows=80,
    queue_max=7,
    tail_s=1.5,
)


def test_shares_are_of_what_there_was():
    metrics = FIRST.metrics()
    assert metrics["rollout/env_busy"] == pytest.approx(0.75)
    assert metrics["rollout/policy_busy"] == pytest.approx(0.4)
    assert metrics["rollout/useful_steps_per_s"] == pytest.approx(40.0)
    assert metrics["rollout/policy_batch_rows"] == 3.0 and metrics["rollout/queue_depth_mean"] == 4.0


def test_several_rollouts_add_up_but_for_the_longest_queue():
    both = RolloutStats.total([FIRST, RolloutStats(wall_s=10.0, env_capacity_s=20.0, queue_max=3, env_steps=100)])
    assert both.metrics()["rollout/env_busy"] == pytest.approx(0.375)
    assert both.metrics()["rollout/useful_steps_per_s"] == pytest.approx(25.0)
    assert (both.queue_max, both.dead_steps) == (7, 16)


def test_no_rollout_costs_nothing():
    assert set(RolloutStats.total([]).metrics().values()) == {0.0}

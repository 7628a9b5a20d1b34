"""Each piece of GRPO against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gripline.algorithms.grpo import LossInputs, chunk_weights, group_advantages, is_mixed, k3, policy_loss

NO_EXTRAS = {"clip_low": 0.2, "clip_high": 0.28, "kl_coef": 0.0, "entropy_coef": 0.0}


def test_one_success_of_eight_has_the_known_advantage():
    # mean 1/8; unbiased variance = 8 * (1/8) * (7/8) / 7 = 1/8, so (7/8) / sqrt(1/8) = 2.4749
    advantages = group_advantages(np.array([1.0] + [0.0] * 7), normalise_std=True)
    assert advantages[0] == pytest.approx(2.4749, abs=1e-4)
    assert advantages[1] == pytest.approx(-0.3536, abs=1e-4)


def test_without_std_the_advantage_is_reward_minus_mean():
    np.testing.assert_allclose(group_advantages(np.array([1.0, 0, 0, 1]), normalise_std=False), [0.5, -0.5, -0.5, 0.5])


@given(st.lists(st.booleans(), min_size=2, max_size=16))
def test_advantages_of_a_group_add_up_to_zero_and_follow_the_reward(outcomes):
    rewards = np.array(outcomes, dtype=float)
    for normalise_std in (True, False):
        advantages = group_advantages(rewards, normalise_std=normalise_std)
        assert abs(advantages.sum()) < 1e-4
        if 0 < rewards.sum() < len(rewards):
            assert advantages[rewards == 1].min() > 0 > advantages[rewards == 0].max()


@pytest.mark.parametrize(
    ("successes", "kept"), [(0, False), (1, True), (4, True), (7, True), (8, False)], ids=lambda value: str(value)
)
def test_bounds_of_a_tenth_keep_one_to_seven_of_eight(successes, kept):
    rewards = np.array([1.0] * successes + [0.0] * (8 - successes))
    assert is_mixed(rewards, (0.1, 0.9)) is kept


def test_equal_outcomes_never_count_as_mixed_even_with_open_bounds():
    assert not is_mixed(np.ones(4), (0.0, 1.0))


def test_sequence_mean_gives_a_short_episode_the_weight_of_a_long_one():
    weights = chunk_weights([1, 3], loss_mean="sequence")
    np.testing.assert_allclose(weights, [1 / 2, 1 / 6, 1 / 6, 1 / 6], rtol=1e-6)
    np.testing.assert_allclose(chunk_weights([1, 3], loss_mean="token"), [1 / 4] * 4)


def _inputs(ratio, advantage, **extras):
    behaviour = torch.full((1, 1, 1), -1.0)
    logprobs = (behaviour + math.log(ratio)).requires_grad_()
    return LossInputs(logprobs, behaviour, torch.tensor([advantage]), torch.ones(1), **extras), logprobs


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "has_gradient"),
    [
        (1.0, 2.0, -2.0, True),
        (1.27, 1.0, -1.27, True),  # below the raised upper bound: a symmetric 0.2 would have clipped it
        (1.5, 1.0, -1.28, False),
        (0.5, 1.0, -0.5, True),  # moving away from a good action is never clipped
        (0.5, -1.0, 0.8, False),
        (1.5, -1.0, 1.5, True),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, loss, has_gradient):
    inputs, logprobs = _inputs(ratio, advantage)
    value, metrics = policy_loss(inputs, **NO_EXTRAS)
    value.backward()
    assert float(value) == pytest.approx(loss, rel=1e-5)
    assert (float(logprobs.grad.abs().sum()) > 0) is has_gradient
    assert metrics["clip_fraction"] == (0.0 if has_gradient else 1.0)


def test_k3_by_hand_and_never_negative():
    value = k3(torch.tensor([-1.0]), torch.tensor([-1.5]))
    assert float(value) == pytest.approx(math.exp(-0.5) + 0.5 - 1.0, rel=1e-6)
    assert float(k3(torch.randn(1000), torch.randn(1000)).min()) >= 0


def test_kl_and_entropy_enter_with_their_weights_and_signs():
    inputs, _ = _inputs(
        1.0, 0.0, reference_logprobs_MKA=torch.full((1, 1, 1), -1.5), entropy_MKA=torch.full((1, 1, 1), 2.0)
    )
    loss, metrics = policy_loss(inputs, clip_low=0.2, clip_high=0.28, kl_coef=0.1, entropy_coef=0.01)
    k3_value = math.exp(-0.5) - 0.5
    assert float(loss) == pytest.approx(0.1 * k3_value - 0.01 * 2.0, rel=1e-5)
    assert metrics["kl_to_reference"] == pytest.approx(k3_value, rel=1e-5)
    assert metrics["entropy"] == pytest.approx(2.0)


def test_weights_scale_each_chunk():
    logprobs = torch.zeros(2, 1, 1)
    inputs = LossInputs(logprobs, logprobs.clone(), torch.tensor([1.0, 3.0]), torch.tensor([0.75, 0.25]))
    loss, _ = policy_loss(inputs, **NO_EXTRAS)
    assert float(loss) == pytest.approx(-(0.75 * 1.0 + 0.25 * 3.0))

"""GRPO on a 0/1 outcome reward: the group's mean is the baseline, so there is no critic.

Sources: group advantage and k3 estimate of the KL: DeepSeekMath (arXiv 2402.03300, sections 4.1.1 and 4.1.2, eq. 4);
clip with a higher upper bound and dropping groups without contrast: DAPO (arXiv 2503.14476, sections 3.1 and 3.2);
both applied to vision-language-action policies: SimpleVLA-RL (arXiv 2509.09674, section 3).

Shape letters: G members of a group, M chunks of a minibatch, K actions in a chunk, A action dimensions.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

STD_EPSILON = 1e-6


def is_mixed(rewards_G: np.ndarray, keep_success: tuple[float, float]) -> bool:
    """Whether a group's success rate lies within the bounds: with equal outcomes every advantage is zero."""
    low, high = keep_success
    return bool(low <= float(np.mean(rewards_G)) <= high) and float(np.ptp(rewards_G)) > 0


def group_advantages(rewards_G: np.ndarray, *, normalise_std: bool) -> np.ndarray:
    """Advantage of each member, float32 (G,): reward minus the group's mean, over the unbiased deviation if asked."""
    advantages_G = rewards_G - rewards_G.mean()
    if normalise_std:
        advantages_G = advantages_G / (rewards_G.std(ddof=1) + STD_EPSILON)
    return np.asarray(advantages_G, np.float32)


def chunk_weights(lengths: list[int], *, loss_mean: str) -> np.ndarray:
    """Weight of every chunk, float32 (sum of lengths,), adding up to 1.

    'sequence' gives each episode the same weight, spread over its chunks; 'token' gives each chunk the same weight.
    """
    per_chunk = [1.0 / length if loss_mean == "sequence" else 1.0 for length in lengths for _ in range(length)]
    weights = np.asarray(per_chunk, dtype=np.float32)
    return np.asarray(weights / weights.sum())


@dataclass(frozen=True)
class LossInputs:
    """One minibatch. `weights_M` say how much each chunk counts; they add up to the minibatch's share of the update."""

    logprobs_MKA: "Tensor"
    behaviour_logprobs_MKA: "Tensor"
    advantages_M: "Tensor"
    weights_M: "Tensor"
    reference_logprobs_MKA: "Tensor | None" = None
    entropy_MKA: "Tensor | None" = None


def policy_loss(
    inputs: LossInputs, *, clip_low: float, clip_high: float, kl_coef: float, entropy_coef: float
) -> tuple["Tensor", dict[str, float]]:
    """Clipped surrogate with asymmetric bounds, plus kl_coef * k3 and minus entropy_coef * entropy.

    The ratio is per token; a token's surrogate is min(r A, clip(r, 1 - clip_low, 1 + clip_high) A).
    """
    log_ratio_MKA = inputs.logprobs_MKA - inputs.behaviour_logprobs_MKA
    ratio_MKA = log_ratio_MKA.exp()
    advantages_MKA = inputs.advantages_M[:, None, None].expand_as(ratio_MKA)
    clipped_MKA = ratio_MKA.clamp(1.0 - clip_low, 1.0 + clip_high)
    surrogate_MKA = (ratio_MKA * advantages_MKA).minimum(clipped_MKA * advantages_MKA)
    token_loss_MKA = -surrogate_MKA
    metrics: dict[str, float] = {}
    if inputs.reference_logprobs_MKA is not None:
        kl_MKA = k3(inputs.logprobs_MKA, inputs.reference_logprobs_MKA)
        token_loss_MKA = token_loss_MKA + kl_coef * kl_MKA
        metrics["kl_to_reference"] = _mean(kl_MKA)
    if inputs.entropy_MKA is not None:
        token_loss_MKA = token_loss_MKA - entropy_coef * inputs.entropy_MKA
        metrics["entropy"] = _mean(inputs.entropy_MKA)
    loss = (token_loss_MKA.mean(dim=(1, 2)) * inputs.weights_M).sum()
    metrics["clip_fraction"] = _mean((surrogate_MKA < ratio_MKA * advantages_MKA).float())
    metrics["kl_to_behaviour"] = _mean(ratio_MKA - 1.0 - log_ratio_MKA)
    return loss, metrics


def k3(logprobs: "Tensor", reference_logprobs: "Tensor") -> "Tensor":
    """Unbiased, never negative estimate of KL(policy || reference): exp(d) - d - 1 with d = reference - policy."""
    gap = reference_logprobs - logprobs
    return gap.exp() - gap - 1.0


def _mean(values: "Tensor") -> float:
    return float(values.detach().mean())

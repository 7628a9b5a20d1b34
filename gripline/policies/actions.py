"""Actions and their tokens: normalisation by statistics of the data, then uniform bins. Numpy only.

Bins follow OpenVLA (Kim et al. 2024, section 3.2): V edges evenly over [-1, 1] make V-1 intervals. Token t counts from
the lowest action; the top token (exactly 1 and above) decodes like its lower neighbour, so V logits mean V-1 actions.
"""

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

_RANGE_EPSILON = 1e-8


class ActionStatistics(BaseModel):
    """Bounds that map each dimension of an action (or of proprioception) to [-1, 1].

    Example: `ActionStatistics(low=(-1.0, 0.0), high=(1.0, 1.0), mask=(True, False))`: the second passes unchanged.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: tuple[float, ...]
    high: tuple[float, ...]
    mask: tuple[bool, ...]
    """False: the dimension is passed through, neither scaled nor clipped."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not len(self.low) == len(self.high) == len(self.mask):
            raise ValueError(
                f"low, high and mask differ in length: {len(self.low)}, {len(self.high)}, {len(self.mask)}"
            )
        if any(not low <= high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError("low must not exceed high")
        return self

    @classmethod
    def of(cls, values_XD: np.ndarray, bounds: Literal["q01_q99", "min_max"] = "min_max") -> Self:
        """Measure the bounds of data (any leading dimensions, D last)."""
        flat_XD = np.asarray(values_XD, np.float64).reshape(-1, values_XD.shape[-1])
        if bounds == "min_max":
            low_D, high_D = flat_XD.min(0), flat_XD.max(0)
        else:
            low_D, high_D = np.quantile(flat_XD, [0.01, 0.99], axis=0)
        return cls.between(low_D.tolist(), high_D.tolist())

    @classmethod
    def between(cls, low: Sequence[float], high: Sequence[float]) -> Self:
        """Bounds known beforehand, for example an action space's own."""
        return cls(low=tuple(low), high=tuple(high), mask=(True,) * len(low))

    @property
    def dim(self) -> int:
        return len(self.low)

    def normalise(self, values_XD: np.ndarray, *, constant_is_zero: bool = True) -> np.ndarray:
        """Into [-1, 1], clipped. A dimension that never varied says nothing: it becomes 0 (in training data)."""
        low_D, high_D, mask_D = np.array(self.low), np.array(self.high), np.array(self.mask)
        scaled = np.clip(2 * (values_XD - low_D) / (high_D - low_D + _RANGE_EPSILON) - 1, -1, 1)
        if constant_is_zero:
            scaled = np.where(low_D == high_D, 0.0, scaled)
        return np.where(mask_D, scaled, values_XD)

    def unnormalise(self, normalised_XD: np.ndarray) -> np.ndarray:
        """The inverse, float64."""
        low_D, high_D, mask_D = np.array(self.low), np.array(self.high), np.array(self.mask)
        values = 0.5 * (normalised_XD + 1) * (high_D - low_D + _RANGE_EPSILON) + low_D
        return np.where(mask_D, values, normalised_XD)


def tokens_from_normalised(normalised: np.ndarray, num_bins: int) -> np.ndarray:
    """Token 0…V-1 of each value; values outside [-1, 1] go to the end bins. int64, shape of the input."""
    edges_V = np.linspace(-1.0, 1.0, num_bins)
    tokens: np.ndarray = np.digitize(np.clip(normalised, -1.0, 1.0), edges_V).astype(np.int64) - 1
    return tokens


def normalised_from_tokens(tokens: np.ndarray, num_bins: int) -> np.ndarray:
    """Centre of each token's bin, float64."""
    edges_V = np.linspace(-1.0, 1.0, num_bins)
    centres = (edges_V[:-1] + edges_V[1:]) / 2.0
    values: np.ndarray = centres[np.clip(tokens, 0, num_bins - 2)]
    return values

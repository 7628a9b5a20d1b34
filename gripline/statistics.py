"""Intervals and tests for success rates: what an evaluation may claim from n episodes.

Only the standard library is used, so that whoever draws a table does not wait for SciPy; the tests compare every
number with SciPy, statsmodels or a direct numerical inversion. Sources are given with each function.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class PairedResult:
    """A candidate against a baseline on the same episodes. Example: 120 episodes, 50 gained, 2 lost: difference 0.4."""

    difference: float
    """Success rate of the candidate minus that of the baseline."""
    ci_low: float
    ci_high: float
    p_value: float
    """Two-sided; 1.0 when no episode changed its outcome."""
    n: int
    gained: int
    """Episodes that failed with the baseline and succeed with the candidate."""
    lost: int


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval for a success rate; (0, 1) when n is 0.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927); recommended for
    small n by Brown, Cai and DasGupta, Statistical Science 16 (2001), section 3.1.1.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} episodes")
    if n == 0:
        return 0.0, 1.0
    z = _two_sided_z(confidence)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def paired_comparison(baseline: Sequence[bool], candidate: Sequence[bool], confidence: float = 0.95) -> PairedResult:
    """Compare two policies whose i-th entries are the outcomes of the same episode.

    The p-value is the exact McNemar test and the interval inverts the score test of the paired difference.
    """
    if len(baseline) != len(candidate):
        raise ValueError(f"{len(baseline)} baseline outcomes against {len(candidate)}: they must pair up")
    gained = sum(after and not before for before, after in zip(baseline, candidate, strict=True))
    lost = sum(before and not after for before, after in zip(baseline, candidate, strict=True))
    n = len(baseline)
    low, high = paired_difference_interval(gained, lost, n, confidence)
    difference = (gained - lost) / n if n else 0.0
    return PairedResult(difference, low, high, exact_mcnemar(gained, lost), n, gained, lost)


def exact_mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value: under no difference a changed episode is a gain or a loss with probability 1/2 each.

    McNemar, Psychometrika 12 (1947), with the exact binomial tail instead of the chi-squared approximation.
    """
    changed = gained + lost
    ways, term = 0, 1
    for k in range(min(gained, lost) + 1):  # term is "changed choose k", in exact integers
        ways += term
        term = term * (changed - k) // (k + 1)
    return min(1.0, 2 * ways / (1 << changed))


def paired_difference_interval(gained: int, lost: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval for the difference of two paired success rates; (-1, 1) when n is 0.

    Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 17 (1998). Among the intervals that Fagerland, Lydersen and Laake
    (Statistics in Medicine 33, 2014) recommend it stays nearest to its nominal coverage when few episodes change.
    """
    if gained < 0 or lost < 0 or gained + lost > n:
        raise ValueError(f"{gained} gained and {lost} lost of {n} episodes")
    if n == 0:
        return -1.0, 1.0
    z = _two_sided_z(confidence)
    estimate = (gained - lost) / n

    def score(difference: float) -> float:
        """Standardised distance of the data from a true difference; falls as `difference` grows."""
        b = (2 * n - gained + lost) * difference - gained - lost
        c = -lost * difference * (1 - difference)
        lost_share = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        variance = n * (2 * lost_share + difference * (1 - difference))
        distance = gained - lost - n * difference
        return distance / math.sqrt(variance) if variance > 1e-12 else math.copysign(math.inf, distance)

    low = -1.0 if lost == n else _falling_root(lambda difference: score(difference) - z, -1.0, estimate)
    high = 1.0 if gained == n else _falling_root(lambda difference: score(difference) + z, estimate, 1.0)
    return low, high


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being several (one per OOD axis), in the order given: none may be trusted by luck alone.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979).
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _two_sided_z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} must lie between 0 and 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _falling_root(function: Callable[[float], float], low: float, high: float) -> float:
    """Bisection to double precision: where `function`, which falls from `low` to `high`, crosses zero."""
    for _ in range(60):
        middle = (low + high) / 2
        if function(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2

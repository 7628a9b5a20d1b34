"""Intervals and tests for success rates: what an evaluation may claim from n episodes, and from several trainings.

The tests compare every number with SciPy, statsmodels, an enumeration or a direct numerical inversion. Sources are
given with each function. SciPy is imported only where a binomial tail is needed, so that whoever draws a table does not
wait for it. Shapes: R training seeds, T tasks, B resamples.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from gripline.clusters import design_effect, exact_sign_flip

RESAMPLES = 10_000
"""Of a bootstrap: the bounds then vary by less than 3 % of the interval's width from one seed to the next."""


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
    bootstrap_low: float
    bootstrap_high: float
    detectable: float | None
    """See `detectable_difference`, at the discordance observed here."""


def wilson_interval(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval for a success rate; (0, 1) when n is 0. Counts may be effective ones, not whole.

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


def paired_comparison(
    baseline: Sequence[bool],
    candidate: Sequence[bool],
    strata: Sequence[str] | None = None,
    confidence: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
) -> PairedResult:
    """Compare two policies whose i-th entries are the outcomes of the same episode.

    The p-value is the exact McNemar test and the interval inverts the score test of the paired difference. strata: the
    task of each episode, within which the bootstrap resamples. clusters: the initial state of each episode. Where some
    share one, it is the unit: its changes are summed for an exact sign-flip test, resampled together, and the counts of
    the score interval are divided by their design effect (`gripline.clusters`).
    """
    if len(baseline) != len(candidate):
        raise ValueError(f"{len(baseline)} baseline outcomes against {len(candidate)}: they must pair up")
    n = len(baseline)
    changes = [int(after) - int(before) for before, after in zip(baseline, candidate, strict=True)]
    gained, lost = changes.count(1), changes.count(-1)
    units = clusters if clusters is not None else range(n)
    effect = design_effect(changes, units)
    sums: Counter[tuple[str, Hashable]] = Counter()
    for task, unit, change in zip(strata if strata is not None else [""] * n, units, changes, strict=True):
        sums[task, unit] += change
    by_task: dict[str, Counter[int]] = {}
    for (task, _), change in sums.items():
        by_task.setdefault(task, Counter({1: 0, -1: 0, 0: 0}))[change] += 1
    bootstrap = _bootstrap(by_task.values(), n, confidence, RESAMPLES, seed=0)
    low, high = paired_difference_interval(gained / effect, lost / effect, n / effect, confidence)
    return PairedResult(
        difference=(gained - lost) / n if n else 0.0,
        ci_low=low,
        ci_high=high,
        p_value=exact_mcnemar(gained, lost) if len(sums) == n else exact_sign_flip(sums.values()),
        n=n,
        gained=gained,
        lost=lost,
        bootstrap_low=bootstrap[0],
        bootstrap_high=bootstrap[1],
        detectable=detectable_difference(round(n / effect), (gained + lost) / n) if n else None,
    )


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


def paired_difference_interval(gained: float, lost: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval for the difference of two paired success rates; (-1, 1) when n is 0. Counts may be effective ones.

    Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 17 (1998). Among the intervals that Fagerland, Lydersen and Laake
    (Statistics in Medicine 33, 2014) recommend it stays nearest to its nominal coverage when few episodes change.
    """
    if gained < 0 or lost < 0 or gained + lost > n * (1 + 1e-12):
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


def bootstrap_difference_interval(
    strata: Iterable[tuple[int, int, int]], confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval for the difference of two paired success rates; (-1, 1) when there are no pairs.

    strata: (gained, lost, unchanged) for each task. Pairs are drawn with replacement within their task, so a resample
    is one multinomial draw of these counts. Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section
    13.3; strata as in Davison and Hinkley, "Bootstrap Methods and their Application" (1997), section 3.2. Where hardly
    any episode changes it is too narrow (of width 0 where none does): the score interval is the one to go by.
    """
    counts = [{1: gained, -1: lost, 0: unchanged} for gained, lost, unchanged in strata]
    return _bootstrap(counts, sum(sum(own.values()) for own in counts), confidence, resamples, seed)


def _bootstrap(
    strata: Iterable[Mapping[int, int]], n: int, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """strata: how many units of each task changed by how much. n: episodes."""
    if n == 0:
        return -1.0, 1.0
    rng = np.random.default_rng(seed)
    difference_B = np.zeros(resamples)
    for counts in strata:
        size = sum(counts.values())
        drawn = rng.multinomial(size, [count / size for count in counts.values()], size=resamples)
        difference_B += drawn @ np.array(list(counts)) / n
    return _percentiles(difference_B, confidence)


def mcnemar_power(n: int, gained_share: float, lost_share: float, alpha: float = 0.05) -> float:
    """How likely the exact McNemar test on n pairs finds the candidate better (two-sided p <= alpha).

    gained_share, lost_share: probability that an episode is gained, or lost. The number of changed episodes is
    binomial, and of these the gained ones are. Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91
    (2013), compute the power of McNemar tests in this way, by complete enumeration.
    """
    from scipy.special import bdtr, bdtrc

    share = min(1.0, gained_share + lost_share)
    if share == 0:
        return 0.0
    spread = 8 * math.sqrt(n * share * (1 - share)) + 10  # further out lies less than 1e-10
    changed = np.arange(max(1, math.floor(n * share - spread)), min(n, math.ceil(n * share + spread)) + 1.0)
    weight = np.diff(bdtr(np.append(changed[0] - 1, changed), n, share))
    kept = _largest_kept(1 << n.bit_length(), alpha)[changed.astype(int)]
    return float(weight @ bdtrc(kept, changed, min(1.0, gained_share / share)))


@functools.lru_cache  # of many groups of equal size, some change equally often
def detectable_difference(n: int, discordance: float, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest true difference that the exact McNemar test on n pairs finds with this power, to 0.0001; None if
    there is none.

    discordance: share of episodes whose outcome differs between the policies. It is held fixed; beyond it, every
    changed episode is a gain, and the discordance is the difference itself.
    """

    def found(difference: float) -> float:
        share = max(discordance, difference)
        return mcnemar_power(n, (share + difference) / 2, (share - difference) / 2, alpha)

    if n == 0 or found(1.0) < power:
        return None
    return _falling_root(lambda difference: power - found(difference), 0.0, 1.0, steps=14)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a mean of two or more values, such as differences of paired episodes.

    Student, "The probable error of a mean", Biometrika 6 (1908).
    """
    from scipy.special import stdtrit

    if len(values) < 2:
        raise ValueError(f"{len(values)} values: an interval of a mean needs two or more")
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * spread
    mean = float(np.mean(values))
    return mean - half, mean + half


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half of all scores, whatever the shape: the lowest and the highest quarter are left out.

    Agarwal, Schwarzer, Castro, Courville and Bellemare, "Deep reinforcement learning at the edge of the statistical
    precipice", NeurIPS 2021, section 4.3.
    """
    return float(_interquartile_means(np.ravel(scores)[np.newaxis])[0])


def interquartile_interval(
    scores_RT: np.ndarray, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Interval of the interquartile mean: training seeds are drawn with replacement, for each task on its own.

    scores_RT: success of every training seed on every task; R must be 2 or more. The stratified bootstrap of Agarwal et
    al. (2021), section 4.1. With few seeds its percentiles lie too close together: resampling R values has (R - 1) / R
    of their variance, and a normal's quantile takes the place of Student's. So the distance of both bounds from the
    estimate is widened by these two factors (Hesterberg, "What teachers should know about the bootstrap", The American
    Statistician 69, 2015, on the same shortfall); with many seeds and tasks nothing changes.
    """
    from scipy.special import stdtrit

    num_seeds, num_tasks = scores_RT.shape
    if num_seeds < 2:
        raise ValueError(f"{num_seeds} training seeds: an interval over seeds needs two or more")
    rng = np.random.default_rng(seed)
    drawn_BRT = rng.integers(num_seeds, size=(resamples, num_seeds, num_tasks))
    resampled_BRT = scores_RT[drawn_BRT, np.arange(num_tasks)]
    low, high = _percentiles(_interquartile_means(resampled_BRT.reshape(resamples, -1)), confidence)
    estimate = interquartile_mean(scores_RT)
    student = float(stdtrit(num_tasks * (num_seeds - 1), (1 + confidence) / 2))
    factor = math.sqrt(num_seeds / (num_seeds - 1)) * student / _two_sided_z(confidence)
    return max(0.0, estimate + factor * (low - estimate)), min(1.0, estimate + factor * (high - estimate))


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


@functools.cache
def _largest_kept(limit: int, alpha: float) -> np.ndarray:
    """For 0, 1, … limit changed episodes: the most gains among them that the exact McNemar test does not reject."""
    from scipy.special import bdtr, bdtrik

    changed, half = np.arange(limit + 1.0), np.full(limit + 1, 0.5)
    largest: np.ndarray = np.ceil(bdtrik(1 - alpha / 2, changed, half))
    largest -= (largest > 0) & (bdtr(np.maximum(largest - 1, 0), changed, half) >= 1 - alpha / 2)  # rounded up too far
    largest = np.minimum(largest, changed)
    return largest


def _interquartile_means(scores_BN: np.ndarray) -> np.ndarray:
    """Of each row."""
    cut = scores_BN.shape[1] // 4
    ordered_BN = np.sort(scores_BN, axis=1)
    means_B: np.ndarray = ordered_BN[:, cut : scores_BN.shape[1] - cut].mean(axis=1)
    return means_B


def _percentiles(values_B: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values_B, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _falling_root(function: Callable[[float], float], low: float, high: float, steps: int = 60) -> float:
    """Bisection, by default to double precision: where `function`, which falls from `low` to `high`, crosses zero."""
    for _ in range(steps):
        middle = (low + high) / 2
        if function(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2

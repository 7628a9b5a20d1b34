"""Intervals and tests against SciPy, statsmodels, published examples and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from gripline.statistics import (
    bootstrap_difference_interval,
    detectable_difference,
    exact_mcnemar,
    holm,
    interquartile_interval,
    interquartile_mean,
    mcnemar_power,
    paired_comparison,
    paired_difference_interval,
    wilson_interval,
)

counts = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@st.composite
def paired_counts(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 150))
    gained = draw(st.integers(0, n))
    return gained, draw(st.integers(0, n - gained)), n


@given(counts, st.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_equals_statsmodels(count, confidence):
    """Catches a wrong centre, a one-sided z and a missing continuity of the confidence level."""
    successes, n = count
    expected = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    assert wilson_interval(successes, n, confidence) == pytest.approx(expected, abs=1e-12)


def test_wilson_by_hand_and_at_the_edges():
    """Catches bounds outside of [0, 1] and rounding that excludes a rate of exactly 0 or 1."""
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="11 successes of 10"):
        wilson_interval(11, 10)


@given(st.integers(0, 80), st.integers(0, 80))
def test_mcnemar_equals_statsmodels(gained, lost):
    """Catches a one-sided tail and a p-value above 1 when gains and losses are equal."""
    expected = mcnemar([[5, lost], [gained, 7]], exact=True).pvalue
    assert exact_mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_hand():
    assert exact_mcnemar(0, 0) == 1.0
    assert exact_mcnemar(5, 0) == 2 / 32
    assert exact_mcnemar(1, 4) == 2 * (1 + 5) / 32
    assert 0 < exact_mcnemar(6000, 4000) < 1e-80  # ten thousand episodes neither overflow nor take long


def constrained_score(gained: int, lost: int, n: int, difference: float) -> float:
    """Tango's statistic with the constrained maximum likelihood found numerically instead of in closed form."""
    unchanged = n - gained - lost

    def minus_log_likelihood(lost_share: float) -> float:
        shares = (lost_share + difference, lost_share, 1 - 2 * lost_share - difference)
        observed = (gained, lost, unchanged)
        return -sum(k * math.log(max(share, 1e-300)) for k, share in zip(observed, shares, strict=True))

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    best = minimize_scalar(minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12})
    return (gained - lost - n * difference) / math.sqrt(n * (2 * best.x + difference - difference**2))


@pytest.mark.parametrize("gained, lost, n", [(7, 1, 21), (12, 3, 40), (30, 9, 120), (3, 3, 20), (50, 2, 120)])
def test_paired_interval_solves_the_score_equation(gained, lost, n):
    """Catches an algebra slip in the closed form of the constrained likelihood."""
    low, high = paired_difference_interval(gained, lost, n)
    assert constrained_score(gained, lost, n, low) == pytest.approx(1.959964, abs=1e-4)
    assert constrained_score(gained, lost, n, high) == pytest.approx(-1.959964, abs=1e-4)


def test_paired_interval_of_a_published_example():
    """Airway hyper-responsiveness before and after transplantation, 21 children: Fagerland et al. (2014)."""
    assert paired_difference_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_paired_interval_without_any_change_equals_the_wilson_bound():
    """Catches a zero-width interval when both policies do the same on every episode."""
    low, high = paired_difference_interval(0, 0, 10)
    assert (-low, high) == pytest.approx((wilson_interval(0, 10)[1],) * 2)
    assert paired_difference_interval(0, 0, 0) == (-1.0, 1.0)
    assert paired_difference_interval(5, 0, 5)[1] == 1.0


@given(paired_counts())
def test_paired_interval_is_ordered_and_antisymmetric(numbers):
    """Catches an interval that misses its estimate and one that depends on which policy is called the baseline."""
    gained, lost, n = numbers
    low, high = paired_difference_interval(gained, lost, n)
    assert -1 <= low <= (gained - lost) / n + 1e-9
    assert (gained - lost) / n - 1e-9 <= high <= 1
    assert paired_difference_interval(lost, gained, n) == pytest.approx((-high, -low), abs=1e-9)


def test_paired_comparison_counts_gains_and_losses():
    """Catches swapped arguments: what the candidate does better is a positive difference."""
    result = paired_comparison([False] * 6 + [True, True], [True] * 5 + [False, False, True])
    assert (result.gained, result.lost, result.n) == (5, 1, 8)
    assert result.difference == 0.5
    assert result.p_value == pytest.approx(2 * (1 + 6) / 64)
    assert (result.ci_low, result.ci_high) == paired_difference_interval(5, 1, 8)
    assert (result.bootstrap_low, result.bootstrap_high) == bootstrap_difference_interval([(5, 1, 2)])
    assert result.detectable == detectable_difference(8, 6 / 8)
    with pytest.raises(ValueError, match="must pair up"):
        paired_comparison([True], [])


@settings(deadline=None, max_examples=25)  # statsmodels takes 0.07 s each
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_equals_statsmodels(p_values):
    """Catches a correction that is not monotone or that forgets the order of its input."""
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@pytest.mark.parametrize("shares", [(0.45, 0.35, 0.05, 0.15), (0.5, 0.15, 0.15, 0.2), (0.2, 0.6, 0.05, 0.15)])
def test_coverage_and_false_positives_in_simulation(shares):
    """2,000 simulated experiments of 60 episodes: a 95 % interval that covers far less or more is wrong.

    shares: both succeed, gained, lost, both fail.
    """
    truth = shares[1] - shares[2]
    experiments = np.random.default_rng(0).multinomial(60, shares, size=2000)
    covered = false_positives = 0
    for both, gained, lost, _ in experiments.tolist():
        low, high = paired_difference_interval(gained, lost, 60)
        covered += low <= truth <= high
        false_positives += truth == 0 and exact_mcnemar(gained, lost) < 0.05
        assert wilson_interval(both + gained, 60)[0] <= (both + gained) / 60
    assert 0.93 <= covered / 2000 <= 0.97
    assert false_positives / 2000 <= 0.05


def test_wilson_coverage_in_simulation():
    """Catches an interval that is only right near one half; Wilson's coverage is near nominal on average."""
    rng = np.random.default_rng(1)
    rates = rng.uniform(0.05, 0.95, size=2000)
    successes = rng.binomial(60, rates)
    intervals = [wilson_interval(int(count), 60) for count in successes]
    covered = sum(low <= rate <= high for (low, high), rate in zip(intervals, rates, strict=True))
    assert 0.93 <= covered / 2000 <= 0.97


def test_the_bootstrap_equals_scipys():
    """Catches a wrong percentile, a candidate and a baseline that are swapped, rates instead of paired differences."""
    changes = np.array([1] * 30 + [-1] * 9 + [0] * 81)
    expected = stats.bootstrap(
        (changes,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(5)
    ).confidence_interval
    assert bootstrap_difference_interval([(30, 9, 81)]) == pytest.approx((expected.low, expected.high), abs=0.006)


def test_the_bootstrap_stays_within_its_strata():
    """Catches resamples in which an easy task takes the place of a hard one, against a resampling by index."""
    assert bootstrap_difference_interval([(20, 0, 0), (0, 20, 0)]) == (0.0, 0.0)
    tasks = [(16, 0, 4), (0, 12, 8), (5, 4, 31)]
    rng = np.random.default_rng(6)
    resampled = []
    for _ in range(4000):
        total = 0
        for gained, lost, unchanged in tasks:
            changes = np.array([1] * gained + [-1] * lost + [0] * unchanged)
            total += changes[rng.integers(len(changes), size=len(changes))].sum()
        resampled.append(total / 80)
    expected = np.quantile(resampled, [0.025, 0.975])
    assert bootstrap_difference_interval(tasks) == pytest.approx(expected, abs=0.0126)
    assert bootstrap_difference_interval(tasks, confidence=0.5) != bootstrap_difference_interval(tasks)


def test_the_bootstrap_has_a_seed():
    """Catches a result file that is another one each time it is written."""
    counts = [(30, 9, 81)]
    assert bootstrap_difference_interval(counts) == bootstrap_difference_interval(counts)
    assert bootstrap_difference_interval(counts, resamples=100) != bootstrap_difference_interval(
        counts, resamples=100, seed=1
    )
    assert bootstrap_difference_interval([]) == (-1.0, 1.0)
    assert bootstrap_difference_interval([(0, 0, 10)]) == (0.0, 0.0)


@pytest.mark.parametrize(
    "n, gained, lost", [(30, 0.3, 0.1), (12, 0.5, 0.0), (25, 0.2, 0.2), (7, 1.0, 0.0), (20, 0, 0), (5, 1.0, 0.0)]
)
def test_power_equals_an_enumeration_of_all_outcomes(n, gained, lost):
    """Catches a critical value that is off by one, and rejections in the wrong direction."""
    outcomes = [(b, c) for b in range(n + 1) for c in range(min(b, n + 1 - b))]
    found = [(b, c) for b, c in outcomes if mcnemar([[0, c], [b, 0]], exact=True).pvalue <= 0.05]
    probability = stats.multinomial(n, [gained, lost, 1 - gained - lost])
    expected = sum(probability.pmf([b, c, n - b - c]) for b, c in found)
    assert mcnemar_power(n, gained, lost) == pytest.approx(expected, abs=1e-9)


def test_power_where_every_episode_changes():
    """Catches a critical value that is wrong for many changed episodes only."""
    for n in (*range(1, 41), 63, 100, 255, 256, 257, 400):
        rejected = [gained for gained in range(n // 2 + 1, n + 1) if exact_mcnemar(gained, n - gained) <= 0.05]
        expected = stats.binom.pmf(rejected, n, 0.6).sum()
        assert mcnemar_power(n, 0.6, 0.4) == pytest.approx(expected, abs=1e-9), n


@settings(deadline=None)  # the first call imports scipy
@given(st.integers(6, 2000), st.floats(0, 1), st.sampled_from([0.01, 0.05]), st.sampled_from([0.5, 0.8, 0.95]))
def test_the_detectable_difference_is_where_the_power_is_reached(n, discordance, alpha, power):
    """Catches a bisection that runs the wrong way."""
    found = detectable_difference(n, discordance, alpha, power)
    if found is None:
        assert mcnemar_power(n, 1.0, 0.0, alpha) < power
        return
    for difference, is_enough in ((found + 1e-3, True), (found - 1e-3, False)):
        share = min(1.0, max(discordance, difference))
        shares = (share + min(difference, 1)) / 2, (share - min(difference, 1)) / 2
        assert (mcnemar_power(n, *shares, alpha) >= power) == is_enough


def test_the_detectable_difference_by_hand():
    """Where only gains occur the test needs six of them."""
    assert detectable_difference(5, 0.5) is None
    assert detectable_difference(0, 0.0) is None
    only_gains = detectable_difference(60, 0.0)
    assert stats.binom.sf(5, 60, only_gains) == pytest.approx(0.8, abs=1e-3)
    assert detectable_difference(60, 0.3) > detectable_difference(120, 0.3) > detectable_difference(120, 0.15)


def test_the_detectable_difference_in_simulation():
    """Catches a power of some other test: 80 % of experiments with this difference must find it."""
    n, discordance = 120, 0.4
    difference = detectable_difference(n, discordance)
    shares = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    experiments = np.random.default_rng(4).multinomial(n, shares, size=4000)
    found = sum(exact_mcnemar(gained, lost) <= 0.05 for gained, lost, _ in experiments.tolist())
    assert found / 4000 == pytest.approx(0.8, abs=0.02)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_the_interquartile_mean_equals_scipys_trimmed_mean(scores):
    """Catches a quarter that is cut on one side only, or rounded up."""
    assert interquartile_mean(np.array(scores)) == pytest.approx(stats.trim_mean(scores, 0.25))


def test_the_interquartile_mean_by_hand():
    assert interquartile_mean(np.array([[0.0, 0.5, 0.6], [0.7, 0.8, 1.0], [0.5, 0.5, 0.9], [0.4, 0.6, 0.6]])) == (
        pytest.approx((0.5 + 0.5 + 0.6 + 0.6 + 0.6 + 0.7) / 6)
    )


def widened(low: float, high: float, estimate: float, seeds: int, tasks: int) -> tuple[float, float]:
    """The bounds moved away from the estimate as few seeds demand."""
    factor = math.sqrt(seeds / (seeds - 1)) * stats.t.ppf(0.975, tasks * (seeds - 1)) / stats.norm.ppf(0.975)
    return estimate + factor * (low - estimate), estimate + factor * (high - estimate)


def test_the_interval_over_seeds_equals_scipys_bootstrap():
    """Catches another statistic than the interquartile mean, and a widening that is forgotten or applied twice."""
    scores = np.random.default_rng(8).uniform(0.2, 0.8, size=(15, 1))
    expected = stats.bootstrap(
        (scores[:, 0],),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(9),
    ).confidence_interval
    reference = widened(expected.low, expected.high, interquartile_mean(scores), 15, 1)
    assert interquartile_interval(scores) == pytest.approx(reference, abs=0.01)


def test_the_interval_over_seeds_resamples_each_task_on_its_own():
    """Catches whole seeds that are drawn, or scores that move from one task to another."""
    scores = np.array([[0.1, 0.5, 0.9], [0.2, 0.6, 0.8], [0.3, 0.4, 0.7], [0.15, 0.55, 1.0]])
    rng = np.random.default_rng(10)
    drawn = [[scores[rng.integers(4, size=4), task] for task in range(3)] for _ in range(4000)]
    low, high = np.quantile([stats.trim_mean(np.ravel(each), 0.25) for each in drawn], [0.025, 0.975])
    reference = widened(low, high, interquartile_mean(scores), 4, 3)
    assert interquartile_interval(scores) == pytest.approx(reference, abs=0.01)
    apart = np.array([[0.0, 0.5, 1.0]] * 3)  # every seed gives the same, so nothing is uncertain
    assert interquartile_interval(apart) == (0.5, 0.5)
    with pytest.raises(ValueError, match="two or more"):
        interquartile_interval(scores[:1])


def test_three_seeds_are_not_taken_for_many():
    """Catches the plain percentiles, which miss the truth far more often than they say."""
    rng = np.random.default_rng(11)
    rates_T = np.linspace(0.3, 0.9, 4)

    def measured(seeds: int) -> np.ndarray:
        return np.clip(rates_T + 0.08 * rng.standard_normal((seeds, 4)), 0, 1)

    truth = interquartile_mean(measured(100_000))
    intervals = [interquartile_interval(measured(3), resamples=1000) for _ in range(400)]
    assert 0.91 <= np.mean([low <= truth <= high for low, high in intervals]) <= 0.98

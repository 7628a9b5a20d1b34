"""Intervals and tests against SciPy, statsmodels, published examples and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from gripline.statistics import (
    exact_mcnemar,
    holm,
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
    with pytest.raises(ValueError, match="must pair up"):
        paired_comparison([True], [])


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

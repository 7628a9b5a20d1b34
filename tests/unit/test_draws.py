"""Sampled evaluation: draws that differ, repeat themselves, pair, and are not taken for independent episodes."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gripline import profiles
from gripline.clusters import design_effect, exact_sign_flip
from gripline.config import EvalConfig
from gripline.draws import draws
from gripline.errors import UserError
from gripline.splits import build_splits
from gripline.statistics import exact_mcnemar, paired_comparison, wilson_interval
from gripline.summary import compare, summarise_policy
from gripline.types import EpisodeRecord

SAMPLED = EvalConfig(decoding="sampled", samples=3)
LISTED = build_splits(profiles.load("smoke")).tested


def test_greedy_evaluations_run_the_list() -> None:
    """Catches: keys that change for a profile which does not sample."""
    assert draws(LISTED, EvalConfig()) == LISTED


def test_a_greedy_evaluation_has_no_draws() -> None:
    with pytest.raises(UserError, match=r"eval: samples 4: greedy episodes do not differ; set eval.decoding"):
        profiles.load("smoke", ["eval.samples=4"])


def test_draws_are_named_by_their_initial_state_and_number() -> None:
    """Catches: draws with one key or one noise; noise that changes with the list or between an episode and its
    ablation, so that more than one thing differs."""
    drawn = draws(LISTED, SAMPLED)
    assert len({spec.key for spec in drawn}) == len(drawn) == 3 * len(LISTED)
    assert not {spec.key for spec in drawn} & {spec.key for spec in LISTED}
    assert [spec.member for spec in drawn[:4]] == [0, 1, 2, 0]
    assert draws(LISTED[5:6], SAMPLED) == drawn[15:18]
    noise = {(spec.init_state_key, spec.member): spec.noise_seed for spec in drawn}
    assert all(spec.noise_seed == noise[spec.init_state_key, spec.member] for spec in drawn)
    assert len(set(noise.values())) == len(noise)
    assert max(noise.values()) < 2**53
    assert draws(LISTED, EvalConfig(decoding="sampled")) == [spec for spec in drawn if spec.member == 0]


def record(spec, success: bool) -> EpisodeRecord:
    return EpisodeRecord(spec=spec, success=success, num_steps=8, num_chunks=1)


def test_draws_are_no_independent_episodes() -> None:
    """Catches: an interval or a p-value that gets surer by drawing the same initial states again and again."""
    iid = [spec for spec in LISTED if spec.axis == "iid"]
    config = EvalConfig(decoding="sampled", samples=25)
    solved = {spec.init_seed: index % 2 == 0 for index, spec in enumerate(iid)}

    def outcomes(specs, better: bool = False) -> list[EpisodeRecord]:  # the initial state alone decides
        return [record(spec, solved[spec.init_seed] or (better and index < 25)) for index, spec in enumerate(specs)]

    once, often = summarise_policy(outcomes(iid)), summarise_policy(outcomes(draws(iid, config)))
    assert often.iid.n == 25 * once.iid.n
    assert often.iid.ci95 == pytest.approx(wilson_interval(once.iid.success * len(iid), len(iid)), abs=0.03)

    first_failure = next(index for index, spec in enumerate(iid) if not solved[spec.init_seed])
    reordered = [iid[first_failure], *iid[:first_failure], *iid[first_failure + 1 :]]
    drawn = draws(reordered, config)
    paired = compare(outcomes(drawn), outcomes(drawn, better=True)).iid
    assert (paired.gained, paired.lost) == (25, 0)
    assert paired.p == 1.0  # 25 draws, but one initial state: no more than a toss


def test_ablations_are_compared_with_the_same_draws() -> None:
    """Catches: each draw of an ablation set beside one and the same intact draw."""
    drawn = draws(LISTED, SAMPLED)
    policy = summarise_policy([record(spec, spec.axis == "iid" and spec.member > 0) for spec in drawn])
    assert policy.ablations["no_image"].intact == pytest.approx(2 / 3)


@given(st.lists(st.integers(-4, 4), max_size=9))
def test_the_sign_flip_test_enumerates_all_signs(changes: list[int]) -> None:
    flips = itertools.product((1, -1), repeat=len(changes))
    sums = [abs(sum(sign * change for sign, change in zip(signs, changes, strict=True))) for signs in flips]
    expected = np.mean([each >= abs(sum(changes)) for each in sums])
    assert exact_sign_flip(changes) == pytest.approx(expected)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
def test_single_changes_give_the_exact_mcnemar_test(gained: int, lost: int, unchanged: int) -> None:
    assert exact_sign_flip([1] * gained + [-1] * lost + [0] * unchanged) == pytest.approx(exact_mcnemar(gained, lost))


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.lists(st.booleans(), min_size=30, max_size=30))
def test_clusters_of_one_change_nothing(before: list[bool], after: list[bool]) -> None:
    """Catches: figures that were measured before draws existed and are not found again."""
    after = after[: len(before)]
    assert paired_comparison(before, after, clusters=list(range(len(before)))) == paired_comparison(before, after)
    assert design_effect(before, range(len(before))) == 1.0


def test_the_design_effect_is_one_for_independent_values_and_the_size_for_copies() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(2000), 5)
    independent = (rng.random(10_000) < 0.3).tolist()
    copies = np.repeat(rng.random(2000) < 0.3, 5).tolist()
    assert design_effect(independent, clusters.tolist()) == pytest.approx(1, abs=0.08)
    assert design_effect(copies, clusters.tolist()) == pytest.approx(5, abs=0.01)
    assert design_effect([True] * 10, [0] * 5 + [1] * 5) == 5


def test_intervals_over_draws_hold_the_truth() -> None:
    """Catches: a design effect that is too small. 40 initial states, 6 draws each, of very different difficulty.

    Over 2,000 experiments 95 % are 1,900, and four standard deviations are 39.
    """
    rng = np.random.default_rng(1)
    held = falsely = 0
    clusters = np.repeat(np.arange(40), 6).tolist()
    for _ in range(2000):
        chance = rng.beta(0.8, 0.4, 40)
        drawn = (rng.random((40, 6)) < chance[:, None]).ravel().tolist()
        effect = design_effect(drawn, clusters)
        low, high = wilson_interval(sum(drawn) / effect, len(drawn) / effect)
        held += low <= 2 / 3 <= high
        other = rng.beta(0.8, 0.4, 40)  # no policy is the better one, but each has initial states that it is better on
        sums = (rng.random((40, 6)) < chance[:, None]).sum(1) - (rng.random((40, 6)) < other[:, None]).sum(1)
        falsely += exact_sign_flip(sums.tolist()) <= 0.05
    assert 0.925 <= held / 2000 <= 0.975
    assert falsely / 2000 <= 0.05 + 4 * (0.05 * 0.95 / 2000) ** 0.5


def test_the_cluster_bootstrap_agrees_with_the_spread_of_clusters() -> None:
    """Catches: a bootstrap that draws episodes where it must draw initial states."""
    rng = random.Random(0)
    before, after, clusters = [], [], []
    for state in range(60):
        gains = rng.random() < 0.4
        before += [False] * 5
        after += [gains] * 5
        clusters += [state] * 5
    found = paired_comparison(before, after, clusters=clusters)
    share = found.difference
    half = stats.norm.ppf(0.975) * (share * (1 - share) / 60) ** 0.5
    assert found.bootstrap_high - found.bootstrap_low == pytest.approx(2 * half, rel=0.1)
    assert found.ci_high - found.ci_low == pytest.approx(2 * half, rel=0.15)

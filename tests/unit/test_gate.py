"""The gate's rules on numbers, and what it says."""

import pytest

from components.eval.gate import (
    Finding,
    fit_finding,
    head_finding,
    logprobs_finding,
    markdown,
    success_finding,
)
from components.eval.probe import Fit, Weights
from gripline.config import PromoteConfig
from gripline.summary import summarise_policy
from gripline.types import EpisodeRecord, EpisodeSpec

LIMITS = PromoteConfig()
TRAINED = Weights(not_finite=(), untouched=())


def episodes(task: str, successes: int, n: int, actions: tuple[float, float] = (0.1, 0.2)) -> list[EpisodeRecord]:
    """n IID episodes of two chunks with one action of one dimension each."""
    return [
        EpisodeRecord(
            spec=EpisodeSpec(suite="fake", task=task, instruction="do", init_seed=index, split="iid"),
            success=index < successes,
            num_steps=10,
            num_chunks=2,
            actions_TKA=tuple(((action,),) for action in actions),
        )
        for index in range(n)
    ]


def policy(successes: int, n: int):
    return summarise_policy(episodes("open", successes, n))


def line(finding: Finding) -> str:
    assert finding.problem
    return finding.error.line


def test_a_sound_policy_passes_every_check() -> None:
    """Catches: a gate that stops what it should let through."""
    found = [
        head_finding(TRAINED, 0.8, episodes("open", 5, 10), "ckpt"),
        logprobs_finding(1e-7, 0.0, 1e-3, "ckpt", "results"),
        fit_finding(Fit(0.08, 0.25), 0.075, 1.0, policy(50, 100), LIMITS, "ckpt", "results"),
        success_finding(policy(50, 100), LIMITS, "results"),
    ]
    assert not [finding.problem for finding in found if finding.problem]
    assert markdown(found, LIMITS).count("| passed |") == 4


@pytest.mark.parametrize(
    ("weights", "entropy", "actions", "told"),
    [
        (Weights(("head.linear.weight",), ()), 0.8, (0.1, 0.2), "head.linear.weight is not finite"),
        (Weights((), ("a", "b", "c")), 0.8, (0.1, 0.2), "a, b and 1 more are still as initialised"),
        (TRAINED, 0.995, (0.1, 0.2), "spread over the action bins like chance: 99.5%"),
        (TRAINED, float("nan"), (0.1, 0.2), "spread over the action bins like chance: nan%"),
        (TRAINED, 0.8, (0.1, 0.1), "all 20 recorded action chunks are the same, whatever the policy sees"),
    ],
)
def test_an_untrained_head(weights: Weights, entropy: float, actions: tuple[float, float], told: str) -> None:
    found = line(head_finding(weights, entropy, episodes("open", 0, 10, actions), "runs/a/sft/checkpoint"))
    assert found.startswith("runs/a/sft/checkpoint: promote.gate_head: ") and told in found


def test_log_probs_that_differ() -> None:
    """Catches: NaN that compares as small; a gap between evaluation and checkpoint that only the success would show."""
    assert "differ from the learner's own by 2.00e-02" in line(logprobs_finding(0.02, 0.0, 1e-3, "ckpt", "results"))
    assert "by nan" in line(logprobs_finding(float("nan"), None, 1e-3, "ckpt", "results"))
    assert line(logprobs_finding(0.0, 0.3, 1e-3, "ckpt", "results")).startswith("results: promote.gate_logprobs: ")
    sampled = logprobs_finding(0.0, None, 1e-3, "ckpt", "results")
    assert not sampled.problem and sampled.metrics == {"logprobs/gap": 0.0}


@pytest.mark.parametrize(
    ("fit", "own", "successes", "n", "told"),
    [
        (Fit(0.05, 0.25), 0.05, 0, 100, "IID success 0.000 (at most 0.037) is far below the fit"),
        (Fit(0.05, 0.25), 0.05, 3, 100, ""),  # 3 of 100 may well be 8.5 %, and 8 % would do
        (Fit(0.05, 0.25), 0.05, 0, 20, ""),  # 20 episodes do not show it
        (Fit(0.25, 0.25), 0.25, 0, 100, ""),  # the fit is bad too: nothing is odd about it
        (Fit(0.30, 0.25), 0.28, 0, 100, ""),
        (Fit(0.20, 0.25), 0.05, 90, 100, "as served, it errs by 20.0% of the actions' range"),
        (Fit(0.20, 0.25), None, 90, 100, ""),
        (Fit(0.0, 0.0), 0.0, 90, 100, ""),  # demonstrations of one action
    ],
)
def test_a_success_far_below_the_fit(fit: Fit, own: float | None, successes: int, n: int, told: str) -> None:
    found = fit_finding(fit, own, 1.0, policy(successes, n), LIMITS, "ckpt", "results")
    assert (told in line(found)) if told else not found.problem
    if "far below" in told:
        causes = ("un-normalisation", "camera", "flip", "chunk length", "hold_steps", "statistics", "tokenizer")
        assert all(cause in found.next_step for cause in causes)


def test_an_expert_that_fails_lowers_what_is_expected() -> None:
    fit = Fit(0.0, 0.25)
    assert fit_finding(fit, None, 1.0, policy(1, 100), LIMITS, "ckpt", "results").problem
    assert not fit_finding(fit, None, 0.5, policy(1, 100), LIMITS, "ckpt", "results").problem


@pytest.mark.parametrize(
    ("successes", "told"),
    [(0, "gate_min_success"), (1, "gate_min_success"), (2, ""), (98, ""), (99, "gate_max_success")],
)
def test_a_success_that_leaves_nothing_to_learn(successes: int, told: str) -> None:
    found = success_finding(policy(successes, 100), LIMITS, "results")
    assert found.about == f"promote.{told}" if told else not found.problem


def test_a_task_without_any_success_is_named() -> None:
    """Catches: a task that RL cannot learn, hidden by the mean."""
    records = episodes("open", 10, 20) + episodes("close", 0, 20)
    assert "not once in close" in success_finding(summarise_policy(records), LIMITS, "results").found


def test_each_check_does_what_its_field_says() -> None:
    """Catches: two checks that follow one field."""
    checks = ("head", "logprobs", "fit", "success")
    for check in checks:
        limits = PromoteConfig.model_validate({f"gate_{check}": "warn"})
        actions = {each: Finding(each, "").action(limits) for each in checks}
        assert actions == dict.fromkeys(checks, "stop") | {check: "warn"}
    table = markdown([Finding("fit", "", "is odd")], PromoteConfig(gate_fit="warn"))
    assert "| fit | warning | is odd" in table

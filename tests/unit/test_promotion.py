"""The rules of promotion where noise, missing episodes, rough conduct or an older champion decide."""

from pathlib import Path

import pytest

from components.eval import promote
from gripline.champion import LIST_TAG, SUCCESS_TAG, reason_to_stay
from gripline.config import PromoteConfig
from gripline.metrics import MetricsLog
from gripline.store import RunStore, StageResult
from gripline.summary import RunFacts, Seconds, Summary, indifference_warnings, summarise, summarise_policy
from gripline.types import Conduct, EpisodeRecord, EpisodeSpec

FACTS = RunFacts(
    profile="laptop",
    seed=1,
    seconds=Seconds(demos=1, sft=1, rl=1, eval=1, total=4),
    peak_memory_mb=1.0,
    env_steps=1,
    mlflow_run_id="f00",
    split_hashes={},
)
IID = ("iid", "no_image", "swapped_instruction")


def episodes(axis: str, outcomes: str, *, task: str = "open", force_n: float | None = None) -> list[EpisodeRecord]:
    """One for each character: '1' succeeds, '0' fails, 'x' is lost to the simulator."""
    return [
        EpisodeRecord(
            spec=EpisodeSpec(
                suite="fake",
                task=task,
                instruction=axis,
                init_seed=index if axis in IID else index + 1000 * (1 + sum(map(ord, axis))),
                split="iid" if axis in IID else "ood",
                axis=axis,
            ),
            success=outcome == "1",
            num_steps=10,
            num_chunks=2,
            error="died" if outcome == "x" else "",
            conduct=None if force_n is None else Conduct(peak_contact_force_n=force_n, joint_margin=1 / force_n),
        )
        for index, outcome in enumerate(outcomes)
    ]


def outcomes(lost: int, gained: int, n: int) -> tuple[str, str]:
    """Before and after: so many lost and gained of n, the rest as before."""
    rest = n - lost - gained
    return "1" * lost + "0" * gained + "1" * rest, "0" * lost + "1" * gained + "1" * rest


def decided(axes: dict[str, tuple[str, str]], **rules: object) -> Summary:
    """A sure gain on IID, and these outcomes (before, after) on the axes."""
    before, after = episodes("iid", "0" * 30 + "1" * 30), episodes("iid", "1" * 60)
    for axis, (was, now) in axes.items():
        before, after = before + episodes(axis, was), after + episodes(axis, now)
    config = PromoteConfig.model_validate(rules)
    return summarise(before, after, facts=FACTS, promote=config, indifference_threshold=0.1)


def failed(summary: Summary) -> list[str]:
    assert summary.promoted is not any(reason.startswith("✗") for reason in summary.reasons)
    return [reason for reason in summary.reasons if reason.startswith("✗")]


def test_a_fall_within_noise_does_not_veto() -> None:
    """Catches: a good policy refused because three episodes of twenty changed on one of many axes."""
    axes = {"camera": outcomes(8, 1, 20)} | {f"axis{number}": outcomes(1, 1, 60) for number in range(5)}
    (sure,) = failed(decided(axes))
    assert sure.startswith("✗ OOD camera: falls by 0.350, more than 0.1")
    noisy = decided(axes | {"camera": outcomes(5, 2, 20)})
    assert not failed(noisy)
    assert any("OOD camera: falls by 0.150" in reason and "within noise (n 20" in reason for reason in noisy.reasons)


def test_too_few_ood_episodes_do_not_pass_for_want_of_evidence() -> None:
    """Catches: no sure fall because there is nothing to see it by."""
    (said,) = failed(decided({"camera": outcomes(0, 0, 10)}))
    assert said.startswith("✗ OOD, all axes together: lower 95 % bound -0.2") and "not above -0.100 (n 10)" in said
    assert not failed(decided({"camera": outcomes(0, 0, 60)}))


def test_small_falls_on_all_axes_add_up() -> None:
    """Catches: axes that each fall by less than is tolerated, or by what noise explains, but all of them."""
    axes = {f"axis{number}": outcomes(6, 1, 60) for number in range(5)}
    (said,) = failed(decided(axes))
    assert said.startswith("✗ OOD, all axes together")
    assert not failed(decided({axis: outcomes(2, 1, 60) for axis in axes}))


def test_without_ood_episodes_there_is_no_ood_rule() -> None:
    found = decided({})
    assert not failed(found) and not any("OOD" in reason for reason in found.reasons)


def test_what_the_simulator_lost_is_not_known_to_be_well() -> None:
    """Catches: an axis that vanishes from the comparison with its episodes, and is then not judged."""
    axes = {"camera": outcomes(0, 0, 60), "fog": ("1" * 20, "x" * 20)}
    (said,) = failed(decided(axes))
    assert said == (
        "✗ OOD fog: 100% of the episodes were lost to the simulator, more than 10%; run the evaluation again"
    )
    assert not failed(decided(axes | {"fog": ("x" + "1" * 19, "1" * 19 + "x")}))
    assert failed(decided(axes | {"fog": ("x" + "1" * 19, "1" * 19 + "x")}, max_lost=0.05))


@pytest.mark.parametrize(
    ("before_n", "after_n", "tolerance", "failures"),
    [(10.0, 30.0, None, 0), (10.0, 12.0, 0.5, 0), (10.0, 30.0, 0.5, 2), (30.0, 10.0, 0.5, 0), (None, None, 0.5, 1)],
)
def test_conduct_is_a_rule_where_asked_for(
    before_n: float | None, after_n: float | None, tolerance: float | None, failures: int
) -> None:
    """Catches: a champion that succeeds by force; a margin, of which more is better, read the wrong way round."""
    before, after = episodes("iid", "0" * 60, force_n=before_n), episodes("iid", "1" * 60, force_n=after_n)
    config = PromoteConfig(conduct_tolerance=tolerance)
    found = summarise(before, after, facts=FACTS, promote=config, indifference_threshold=0.1)
    assert len(failed(found)) == failures
    if failures == 2:
        assert "✗ conduct: peak_contact_force_n 10 → 30, worse by 200%, more than 50%" in found.reasons


def test_a_task_that_is_done_blindly_is_said() -> None:
    """Catches: a policy that is blind in one task of many, which the mean over tasks hides."""
    records: list[EpisodeRecord] = []
    for number in range(12):
        task = f"task{number}"
        records += episodes("iid", "1" * 20, task=task)
        records += episodes("no_image", ("1" if number == 0 else "0") * 20, task=task)
        records += episodes("swapped_instruction", ("1" if number == 1 else "0") * 20, task=task)
    policy = summarise_policy(records)
    blind = "keeps 100% of its success (1.00 of 1.00) in task0 with a black image: it hardly uses the camera"
    deaf = "keeps 100% of its success (1.00 of 1.00) in task1 with another task's instruction: it hardly reads"
    assert indifference_warnings(policy, 0.1) == [blind]
    assert indifference_warnings(policy, 0.1, ["task1", "task2"]) == [blind, deaf]
    noise = [record for record in records if record.spec.axis != "no_image"]
    noise += episodes("no_image", "111" + "0" * 17, task="task0")
    assert indifference_warnings(summarise_policy(noise), 0.5) == []


def test_who_keeps_the_alias() -> None:
    """Catches: a worse policy that silently replaces a better one; two that were tested on other episodes compared."""
    better, worse = {LIST_TAG: "a", SUCCESS_TAG: "0.95"}, {LIST_TAG: "a", SUCCESS_TAG: "0.90"}
    assert "stays on version 3, which succeeded on 95.0%" in reason_to_stay("3", better, worse, "champion")
    assert not reason_to_stay("3", worse, better, "champion")
    assert not reason_to_stay("3", better, better, "champion")
    assert not reason_to_stay("3", better | {LIST_TAG: "b"}, worse, "champion")
    assert not reason_to_stay("3", {}, worse, "champion")


@pytest.mark.parametrize(
    ("best_iteration", "curve", "told"),
    [(0, [0.4, 0.3], "0.500 before RL, then at most 0.400, at last 0.300"), (2, [0.4, 0.6], ""), (0, [], "")],
)
def test_an_rl_that_made_it_worse_is_said(tmp_path: Path, best_iteration: int, curve: list[float], told: str) -> None:
    """Catches: "no gain", where the truth is that every update made the policy worse and SFT's weights were kept."""
    store = RunStore(str(tmp_path))
    outputs = {"best_iteration": best_iteration, "validation_success": 0.5}
    StageResult(fingerprint="f00", outputs=outputs).write(store, "rl")
    log = MetricsLog(tmp_path / "rl" / "metrics.jsonl", lambda metrics, step: None)
    for step, success in enumerate(curve):
        log.log(step, {"val/success": success})
        log.log(step, {"train/success": 0.9})
    found = promote._rl_warnings(store)
    assert [told in text for text in found] == ([True] if told else [])


def test_a_version_says_what_it_was_tested_on() -> None:
    """Catches: two champions compared that were tested on other lists; OOD episodes that make lists of IID differ."""
    found = decided({"camera": outcomes(0, 0, 60)})
    records = episodes("iid", "1" * 60)
    tags = promote._measured(found, records + episodes("camera", "11"))
    assert tags == promote._measured(found, records)
    assert tags != promote._measured(found, records[1:])
    assert tags[SUCCESS_TAG] == "1.000000"

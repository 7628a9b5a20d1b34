"""The evaluation benchmark: it notices intervals that are too narrow or too wide, and measures what it says."""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # a folder of scripts, not a package

import evaluation
import evaluation_overhead as overhead
import interval_coverage
from verdicts import at_least, at_most

from gripline import profiles
from gripline.splits import build_splits
from gripline.summary import summarise_policy


def test_the_worst_counts_and_the_limit_is_reached() -> None:
    """Catches: a mean where the worst is asked for; a strict bound where it is not."""
    found = at_least("coverage", 0.93, {"here": 0.95, "there": 0.92})
    assert (found.reached, found.measured, found.where) == (False, 0.92, "there")
    assert at_least("coverage", 0.93, {"here": 0.93}).reached
    assert at_most("seconds", 5, {"here": 4.0, "there": 5.0}).reached
    assert not at_most("p", 5, {"there": 5.0}, relation="<").reached


@pytest.mark.parametrize(("confidence", "missed"), [(0.8, {"≥"}), (0.95, set()), (0.999, {"≤"})])
def test_wrong_intervals_are_noticed(confidence: float, missed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a simulation in which every interval holds the truth, or hardly any."""
    rates, pairs = interval_coverage.wilson_interval, interval_coverage.paired_difference_interval
    monkeypatch.setattr(interval_coverage, "wilson_interval", lambda k, n: rates(k, n, confidence))
    monkeypatch.setattr(
        interval_coverage, "paired_difference_interval", lambda *counts: pairs(*counts, confidence=confidence)
    )
    for measure in (interval_coverage.wilson, interval_coverage.score):
        verdicts = evaluation.judge_coverage("it", measure(150))
        assert len(verdicts) == 4
        assert {each.relation for each in verdicts if each.name == "it: coverage" and not each.reached} == missed


def test_every_interval_is_measured_at_every_truth() -> None:
    """Catches: an interval over seeds or a bootstrap that is left out of the figures."""
    found = evaluation.covering(2)
    assert [len(shares) for shares in found.figures.values()] == [20, 20, 20, 5, 12]
    assert len(found.verdicts) == 17


def test_a_test_that_sees_too_much_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(interval_coverage.false_positives(300).values()) < 0.1
    monkeypatch.setattr(interval_coverage, "exact_mcnemar", lambda gained, lost: 0.04 if gained > lost else 1.0)
    assert min(interval_coverage.false_positives(300).values()) > 0.3


def test_truths_are_what_the_experiments_are_drawn_from() -> None:
    """Catches: a truth that is not the one simulated, for which every good interval would look bad."""
    for where, truth, drawn in interval_coverage._experiments(400):
        measured = sum(task[0] - task[1] for counts in drawn for task in counts)
        n = sum(sum(task) for counts in drawn for task in counts)
        assert measured / n == pytest.approx(truth, abs=0.02), where


def test_made_up_episodes_are_distinct_and_of_every_kind() -> None:
    records = evaluation.made_up_episodes(1800, seed=1, success=0.6)
    assert len({record.spec.key for record in records}) == 1800
    policy = summarise_policy(records)
    assert (len(policy.per_task), len(policy.ood), len(policy.ablations)) == (10, 5, 3)
    assert policy.iid.success == pytest.approx(0.6, abs=0.1)


def test_the_command_measures_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: timed programs that fail, figures that are printed but not written."""
    monkeypatch.setattr(evaluation, "EPISODES", 180)
    monkeypatch.setattr(evaluation, "REPEATS", 1)
    evaluation.main(["--part", "loading", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["figures"]["loading"]["seconds"].keys() == evaluation.WORK.keys()
    assert min(found["figures"]["loading"]["seconds"].values()) > 0
    assert found["targets"][0]["name"] == "results of 180 episodes, s"
    assert "results of 180 episodes, s ≤ 5" in capsys.readouterr().out


class DeafTracker:
    """Stands in for MLflow."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *given, **named: None


def test_the_overhead_is_of_the_same_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_ray: None
) -> None:
    """Catches: a stage that finds its former results and runs nothing; a way that is left out."""
    tiny = ("iid_per_task=2", "ood_per_task=1", "ablation_per_task=1", "train_per_task=2", "val_per_task=1")
    toy = "env={suite: toy, tasks: [toy-red, toy-blue], image_size_px: 16, hold_steps: 4, horizon_steps: 16}"
    settings = (toy, "rollout.env_workers=1", *(f"splits.{name}" for name in tiny))
    monkeypatch.setattr(evaluation, "OVERHEAD_PROFILE", "smoke")
    monkeypatch.setattr(evaluation, "OVERHEAD_SETTINGS", settings)
    monkeypatch.setattr(evaluation, "OVERHEAD_REPEATS", 2)
    monkeypatch.setattr(overhead, "ensure_parent", lambda *given, **named: "0" * 32)
    monkeypatch.setattr("gripline.tracking.stage_run", lambda context, stage: nullcontext(DeafTracker()))
    found = evaluation.overhead(0)
    (figures,) = found.figures.values()
    assert figures["episodes"] == len(build_splits(profiles.load("smoke", settings)).tested)
    assert all(figures[name] > 0 for name in (overhead.BARE, overhead.STAGE, overhead.UNTRACKED))
    assert [verdict.limit for verdict in found.verdicts] == [5]
    assert found.verdicts[0].measured == figures[overhead.OVERHEAD]

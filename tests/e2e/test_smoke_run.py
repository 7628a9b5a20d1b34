"""The real thing, as small as it gets: profile smoke from the command line to its table, interrupted and continued."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from gripline import profiles
from gripline.checkpoint import checkpoint_hash, read_manifest
from gripline.results import read_results
from gripline.splits import ABLATIONS, OOD_AXES, build_splits
from gripline.summary import read_summary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
GRIPLINE = str(Path(sys.executable).with_name("gripline"))


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return subprocess.Popen(
        [GRIPLINE, "run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment,
    )


def events(run: Path) -> list[dict[str, Any]]:
    path = run / "progress.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def happened(run: Path, stage: str, event: str, text: str = "") -> bool:
    return any((one["stage"], one["event"]) == (stage, event) and text in one["text"] for one in events(run))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where profile smoke was run until RL had kept an iteration, and then interrupted by Ctrl-C."""
    place = tmp_path_factory.mktemp("smoke")
    process = start("smoke", cwd=place)
    run = place / "runs" / "smoke-1"
    while not list(run.glob("rl/state/iteration-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    below = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in child.name() for child in below)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.startswith("gripline: interrupted") and errors.count("\n") == 1
    assert [child for child in below if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    return place


@pytest.fixture(scope="module")
def finished(interrupted: Path) -> Path:
    """The same command again: the run continues, without being told where."""
    process = start("smoke", cwd=interrupted)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.startswith("continuing runs/smoke-1")
    return interrupted / "runs" / "smoke-1"


def test_continued_run_kept_what_was_finished(finished: Path) -> None:
    """Catches: demonstrations, SFT or evaluation done twice; RL started afresh."""
    assert sum(one["event"] == "start" for one in events(finished) if one["stage"] == "demos") == 1
    assert happened(finished, "sft", "note", "already finished, kept")
    assert happened(finished, "eval-sft", "note", "already finished, kept")
    assert happened(finished, "rl", "note", "resumed at iteration 1")


def test_summary_is_complete(finished: Path) -> None:
    """Catches: a number that other programs rely on and that is missing, empty, or not measured."""
    summary = read_summary(finished / "summary.json")
    profile = profiles.load("smoke")
    for policy in (summary.sft, summary.rl):
        assert policy.iid.n == len(profile.env.tasks) * profile.splits.iid_per_task
        assert set(OOD_AXES) <= policy.ood.keys()
        assert set(ABLATIONS) <= policy.ablations.keys()
        assert policy.per_task.keys() == set(profile.env.tasks)
    assert min(dict(summary.seconds).values()) > 0
    assert summary.seconds.total > summary.seconds.rl + summary.seconds.eval
    assert 500 < summary.peak_memory_mb < 8000
    assert summary.env_steps > 0
    assert summary.split_hashes == build_splits(profile).hashes


def test_folder_holds_everything(finished: Path) -> None:
    for policy in ("sft/checkpoint", "rl/checkpoint"):
        read_manifest(finished / policy)
    tested = build_splits(profiles.load("smoke")).tested
    for name in ("eval-sft", "eval-rl"):
        read_results(finished / name / "results.jsonl", tested)
    assert (finished / "report.html").stat().st_size > 10_000
    assert list((finished / "videos").iterdir())


def test_tracking_has_a_parent_and_a_child_per_stage(finished: Path) -> None:
    """Catches: a run that is said to go on for ever, two runs for a stage that was continued."""
    from mlflow.tracking import MlflowClient

    context = json.loads((finished / "context.json").read_text())
    client = MlflowClient(context["tracking_uri"])
    parent = client.get_run(context["parent_run_id"])
    runs = client.search_runs([parent.info.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    children = [run.info.run_name for run in runs if run.info.run_id != parent.info.run_id]
    assert sorted(children) == ["eval-rl", "eval-sft", "gate", "promote", "rl", "sft"]
    summary = read_summary(finished / "summary.json")
    assert parent.data.metrics["run/peak_memory_mb"] == pytest.approx(summary.peak_memory_mb, abs=0.1)


def test_given_checkpoint_skips_sft(finished: Path) -> None:
    """Catches: a checkpoint that is retrained, or replaced by another."""
    checkpoint = finished / "sft" / "checkpoint"
    place = finished.parents[1]
    options = ("--set", "rl.iterations=1", "--set", "eval.videos=0", "--out", "second")
    process = start("smoke", "--from", str(checkpoint), *options, cwd=place)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert happened(place / "second", "sft", "note", "skipped")
    assert not (place / "second" / "sft").exists()
    trained = read_manifest(place / "second" / "rl" / "checkpoint")
    assert trained.provenance.parent == checkpoint_hash(checkpoint)
    before, after = read_summary(finished / "summary.json"), read_summary(place / "second" / "summary.json")
    assert after.sft == before.sft

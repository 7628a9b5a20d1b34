"""What a component hands to its stage: the function exists and takes it, and outputs come back as artifacts."""

import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.eval import gate as gate_stage
from components.eval.component import evaluate, gate
from components.rl.component import rl
from components.sft.component import sft
from gripline.kube import stage

CONTEXT = json.dumps({"parent_run_id": "parent"})


class Recorder:
    """In place of `run_stage`: binds the call to the stage's real function, and returns what that would."""

    def __init__(self) -> None:
        self.job = self.cluster = ""
        self.bound: dict[str, Any] = {}

    def run_stage(
        self,
        job: str,
        function: str,
        *,
        cluster: str,
        context: str,
        arguments: Mapping[str, str],
        files: Mapping[str, str] = stage.NONE,
        outputs: Mapping[str, str] = stage.NONE,
    ) -> dict[str, Any]:
        module, _, name = function.partition(":")
        signature = inspect.signature(getattr(importlib.import_module(module), name))
        self.bound = dict(signature.bind(context=context, **arguments, **files, **outputs).arguments)
        self.job, self.cluster = job, cluster
        assert job in stage.STAGES
        assert all(isinstance(value, str) for value in self.bound.values()), "they travel as texts"
        return {"uri": "s3://b/checkpoint", "hash": "f00", "seconds": 1.0}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    monkeypatch.setattr(stage, "run_stage", found.run_stage)
    return found


def artifact(path: str = "", **metadata: Any) -> SimpleNamespace:
    return SimpleNamespace(path=path, metadata=metadata)


@pytest.mark.parametrize(("checkpoint", "where"), [("", "{}"), ("s3://b/given", "")])
def test_sft(recorder: Recorder, checkpoint: str, where: str) -> None:
    """A given checkpoint is only handed on: no pods for that."""
    policy, metrics = artifact(), artifact()
    sft.python_func(
        context=CONTEXT, config="{}", cluster="{}", checkpoint_uri=checkpoint, demonstrations=artifact("/demos"),
        policy=policy, metrics=metrics,
    )  # fmt: skip
    assert (recorder.job, recorder.cluster, recorder.bound["demos_path"]) == ("sft", where, "/demos")
    assert policy.metadata == {"uri": "s3://b/checkpoint", "hash": "f00", "mlflow_run_id": "parent"}
    assert metrics.metadata == {"seconds": 1.0}


def test_rl(recorder: Recorder) -> None:
    improved, metrics = artifact(), artifact()
    rl.python_func(
        context=CONTEXT, config="{}", cluster="{}", policy=artifact(uri="s3://b/sft"), splits=artifact("/splits"),
        improved_policy=improved, metrics=metrics,
    )  # fmt: skip
    assert (recorder.job, recorder.cluster) == ("rl", "{}")
    assert recorder.bound | {"policy_uri": "s3://b/sft", "splits_path": "/splits"} == recorder.bound
    assert improved.metadata == {"uri": "s3://b/checkpoint", "hash": "f00", "mlflow_run_id": "parent"}
    assert metrics.metadata == {"seconds": 1.0}


@pytest.mark.parametrize("whose", ["sft", "rl"])
def test_evaluate(recorder: Recorder, whose: str, tmp_path: Path) -> None:
    evaluate.python_func(
        context=CONTEXT, config="{}", cluster="{}", stage_name=whose, policy=artifact(uri="s3://b/p"),
        splits=artifact("/splits"), results=artifact(str(tmp_path / "r")), metrics=artifact(),
    )  # fmt: skip
    assert recorder.job == f"eval-{whose}" and recorder.bound["stage"] == whose
    assert recorder.bound["results_path"] == str(tmp_path / "r")


def test_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: an artifact that reaches the gate under another's name; findings that the UI does not show."""
    bound: dict[str, Any] = {}

    def run(**arguments: Any) -> dict[str, float]:
        bound.update(arguments)
        return {"head_passed": 1.0}

    assert (
        inspect.signature(gate_stage.run).parameters.keys()
        == inspect.signature(gate_stage.run)
        .bind(context="", config="", rl_config="", policy_uri="", demos_path="", results_path="", table_path="")
        .arguments.keys()
    )
    monkeypatch.setattr(gate_stage, "run", run)
    metrics = artifact()
    gate.python_func(
        context=CONTEXT, config="{}", rl_config="{rl}", policy=artifact(uri="s3://b/sft"),
        demonstrations=artifact("/demos"), results=artifact("/results"), findings=artifact("/table"), metrics=metrics,
    )  # fmt: skip
    assert bound == {
        "context": CONTEXT,
        "config": "{}",
        "rl_config": "{rl}",
        "policy_uri": "s3://b/sft",
        "demos_path": "/demos",
        "results_path": "/results",
        "table_path": "/table",
    }
    assert metrics.metadata == {"head_passed": 1.0}

"""Evaluation: every listed episode once, and the same bytes whatever the number of workers."""

from pathlib import Path

import fsspec
import pytest
import ray
from learning.conftest import context_json

from components.eval import evaluate
from gripline import stages, stopping
from gripline.envs.suites import env_spec
from gripline.errors import UserError
from gripline.policies import build_policy, save_policy
from gripline.results import ResultsWriter
from gripline.rollout.engine import standard_engine


def _evaluate(tuned, folder: Path, *, workers: int = 1, slots: int = 3, run_dir: str = "") -> bytes:
    profile, splits_path, splits, uri = tuned
    section = stages.EvalStage(
        env=profile.env,
        rollout=profile.rollout.model_copy(update={"env_workers": workers, "slots_per_worker": slots}),
        eval=profile.eval,
        seed=1,
    )
    path = folder / "copy.jsonl"
    context = stages.RunContext.model_validate_json(context_json(folder, splits))
    evaluate.run(
        context=context.model_copy(update={"run_dir": run_dir or str(folder)}).model_dump_json(),
        config=section.model_dump_json(),
        splits_path=str(splits_path),
        policy_uri=uri,
        stage="sft",
        results_path=str(path),
    )
    return path.read_bytes()


def test_results_are_bit_equal_for_1_2_and_4_workers(tuned, tmp_path):
    files = [_evaluate(tuned, tmp_path / str(workers), workers=workers) for workers in (1, 2, 4)]
    assert files[0] == files[1] == files[2]
    assert len(files[0].splitlines()) == len(tuned[2].tested)


def test_an_interrupted_evaluation_keeps_what_it_had_and_gives_the_same_file(tuned, tmp_path):
    whole = _evaluate(tuned, tmp_path / "whole")
    folder = tmp_path / "parts" / "eval-sft"
    folder.mkdir(parents=True)
    lines = whole.splitlines(keepends=True)
    (folder / "results.jsonl.partial").write_bytes(b"".join(lines[5:9]) + lines[0][:40])  # killed while writing
    assert _evaluate(tuned, tmp_path / "parts") == whole


def test_an_evaluation_goes_on_in_another_pod(tuned, tmp_path, monkeypatch):
    """Catches: hours of episodes that are gone with the pod; half of an evaluation left in the store."""
    monkeypatch.setattr(evaluate, "PUSH_EVERY_S", 0.0)
    files, bucket = fsspec.filesystem("memory"), f"/{tmp_path.name}/run"
    append, kept = ResultsWriter.append, []

    def append_and_die(self, record):
        if len(kept) == 5:
            raise ConnectionError("the pod is gone")
        kept.append(record)
        append(self, record)

    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(ResultsWriter, "append", append_and_die)
        _evaluate(tuned, tmp_path, run_dir=f"memory:/{bucket}")
    assert sorted(files.find(bucket)) == [
        f"{bucket}/eval-sft/{name}" for name in ("inputs.sha256", "results.jsonl.partial")
    ]

    ran = []
    with monkeypatch.context() as patch:
        patch.setattr(ResultsWriter, "append", lambda self, record: (ran.append(record), append(self, record)))
        parts = _evaluate(tuned, tmp_path, run_dir=f"memory:/{bucket}")
    assert len(ran) == len(tuned[2].tested) - 5
    assert parts == _evaluate(tuned, tmp_path / "whole")
    names = ("inputs.sha256", "results.jsonl", "stage.json")
    assert sorted(files.find(bucket)) == [f"{bucket}/eval-sft/{name}" for name in names]


@pytest.mark.parametrize("remote", [False, True])
def test_an_evaluation_that_is_asked_to_stop_keeps_what_it_has(tuned, tmp_path, monkeypatch, remote):
    """Catches: episodes of an orphan that are run again; an orphan that goes on to the end."""
    run_dir = f"memory://{tmp_path.name}/run" if remote else str(tmp_path / "run")
    append, kept = ResultsWriter.append, []

    def append_and_ask(self, record):
        kept.append(record)
        append(self, record)
        if len(kept) == 5:
            stopping.request("the launcher is gone")

    with monkeypatch.context() as patch, pytest.raises(stopping.StopRequestedError):
        patch.setattr(ResultsWriter, "append", append_and_ask)
        _evaluate(tuned, tmp_path, run_dir=run_dir)
    stopping.clear()
    assert len(kept) == 5
    ran = []
    with monkeypatch.context() as patch:
        patch.setattr(ResultsWriter, "append", lambda self, record: (ran.append(record), append(self, record)))
        parts = _evaluate(tuned, tmp_path, run_dir=run_dir)
    assert len(ran) == len(tuned[2].tested) - 5
    assert parts == _evaluate(tuned, tmp_path / "whole")


def test_results_of_another_policy_are_refused_whether_finished_or_not(tuned, tmp_path):
    """Catches: episodes of one policy that are counted, or continued, as another's."""
    profile, splits_path, splits, _ = tuned
    policy = build_policy(profile.policy, env_spec(profile.env), instructions=["touch the red square"], seed=9)
    policy.heads_trained = ("token",)
    save_policy(tmp_path / "other", policy, env=profile.env, stage="sft")
    other = (profile, splits_path, splits, str(tmp_path / "other"))

    _evaluate(tuned, tmp_path / "run")
    with pytest.raises(UserError, match="finished with other inputs"):
        _evaluate(other, tmp_path / "run")
    folder = tmp_path / "run" / "eval-sft"
    (folder / "stage.json").unlink()  # killed before it was finished
    (folder / "results.jsonl").rename(folder / "results.jsonl.partial")
    with pytest.raises(UserError, match="begun with other inputs"):
        _evaluate(other, tmp_path / "run")
    _evaluate(tuned, tmp_path / "run")
    assert _evaluate(other, tmp_path / "another run") != (folder / "results.jsonl").read_bytes()


def test_a_policy_that_cannot_be_loaded_stops_the_run_at_once(tuned, tmp_path):
    with pytest.raises(ray.exceptions.RayError, match="does not exist"):
        standard_engine(tuned[0].env, str(tmp_path / "nowhere"), tuned[0].rollout)

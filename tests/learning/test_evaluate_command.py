"""`gripline evaluate`: a checkpoint on a profile's lists without a pipeline; resumed, sharded, merged, compared."""

import json
from contextlib import nullcontext

import pytest
import yaml

from components.eval import evaluate as stage
from gripline import profiles
from gripline.evaluated_runs import read_evaluation
from gripline.results import ResultsWriter, read_results
from gripline.stages import CONTEXT_FILE
from pipelines import evaluate as command
from pipelines.cli import main


@pytest.fixture
def toy(tuned, toy_engine, tmp_path, monkeypatch, capsys):
    """A function that runs `gripline evaluate` on the toy profile: (exit code, what it printed, its errors)."""
    profile, _, splits, uri = tuned
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(json.loads(profile.model_dump_json())))
    ended = []
    monkeypatch.setattr(command, "ensure_parent", lambda *given, **named: "0" * 32)
    monkeypatch.setattr(command, "end_parent", lambda uri, run_id, status: ended.append(status))
    monkeypatch.setattr(stage, "_own_engine", lambda job: nullcontext(toy_engine))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, merge: bool = False) -> tuple[int, str, list[str]]:
        given = list(arguments) if merge else [str(path), "--from", uri, *arguments]
        with pytest.raises(SystemExit) as exit_:
            main(["evaluate", *given])
        shown = capsys.readouterr()
        return exit_.value.code, shown.out, shown.err.splitlines()

    run.ended, run.specs, run.uri = ended, splits.tested, uri
    return run


def test_a_checkpoint_is_evaluated_shown_and_kept(toy, tmp_path, monkeypatch):
    """Catches: another folder, or the same episodes once more, when the same command is given again."""
    code, shown, errors = toy()
    assert (code, errors, toy.ended) == (0, [], ["FINISHED"])
    (folder,) = tmp_path.glob("runs/toy-eval-*")
    assert sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".")) == [
        *("checkpoint.txt", "eval-sft", "log.txt", "profile.yaml")
    ]
    records = read_results(folder / "eval-sft" / "results.jsonl", toy.specs)
    for told in ("IID", "toy-red", "camera", "no image", "episodes/s", "control steps/s"):
        assert told in shown
    assert "[eval-sft] advance" in (folder / "log.txt").read_text()
    assert "results: runs/toy-eval-" in shown

    ran = []
    monkeypatch.setattr(ResultsWriter, "append", lambda self, record: ran.append(record))
    code, again, errors = toy()
    assert (code, errors, ran, toy.ended) == (0, [], [], ["FINISHED"])
    assert again.partition("Success in")[2] == shown.partition("Success in")[2]

    evaluation = read_evaluation(str(folder), "rl", "")
    assert (evaluation.policy, list(evaluation.records)) == ("sft", records)


def test_the_last_shard_merges_and_separate_folders_are_merged(toy, tmp_path):
    """Catches: a merge that waits for nobody, another file than without shards, shards that need one folder."""
    assert toy("--out", "whole")[0] == 0
    whole = (tmp_path / "whole" / "eval-sft" / "results.jsonl").read_bytes()

    code, shown, errors = toy("--out", "one", "--shard", "2/2")
    assert (code, errors) == (0, [])
    assert "shard 2/2 is done" in shown and "still to come: 1/2" in shown
    assert not (tmp_path / "one" / "eval-sft" / "results.jsonl").exists()
    assert "Success in %" in toy("--out", "one", "--shard", "1/2")[1]
    assert (tmp_path / "one" / "eval-sft" / "results.jsonl").read_bytes() == whole
    assert toy.ended == ["FINISHED"] * 2  # shards alone leave nothing in MLflow

    for index in (1, 2):
        assert toy("--out", f"part-{index}", "--shard", f"{index}/2")[0] == 0
    code, _, errors = toy("--merge", "part-1", merge=True)
    assert (code, errors) == (
        2,
        ["gripline: part-1: 1 of 2 shards are missing: 2/2; run them, or name their folders too"],
    )
    code, _, errors = toy("--merge", "part-1", "whole", merge=True)
    assert code == 2 and "whole: --merge: holds no shard of this evaluation" in errors[0]
    code, shown, errors = toy("--merge", "part-1", "part-2", "--out", "both", merge=True)
    assert (code, errors) == (0, []) and "in all shards together" in shown
    assert (tmp_path / "both" / "eval-sft" / "results.jsonl").read_bytes() == whole
    assert not (tmp_path / "part-1" / "eval-sft" / "results.jsonl").exists()


def test_folders_of_others_are_refused_untouched(toy, tmp_path):
    """Catches: results of two evaluations in one folder; a pipeline's evaluation that is written over."""
    run = tmp_path / "run"
    run.mkdir()
    (run / CONTEXT_FILE).write_text("{}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("my only copy")
    for out, told in (("run", "is the folder of a pipeline run"), ("mine", "it holds thesis.txt")):
        code, _, errors = toy("--out", out)
        assert code == 2 and len(errors) == 1 and told in errors[0], errors
    assert toy("--out", "first", "--shard", "1/9")[0] == 0
    code, _, errors = toy("--out", "first", "--set", "eval.decoding=sampled")
    assert code == 2 and "first: --out: is of another evaluation: eval.decoding is 'sampled' here" in errors[0]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "my only copy"
    assert [entry.name for entry in run.iterdir() if not entry.name.startswith(".")] == [CONTEXT_FILE]


def test_a_sampled_episode_is_replayed_with_the_policy_itself(toy, tmp_path, capsys):
    """Catches: noise that a replay does not know; a policy alone that acts unlike the same policy in a batch."""
    assert toy("--out", "run", "--set", "eval.decoding=sampled", "--set", "eval.samples=2")[0] == 0
    for arguments, told in (
        (["run", "3", "--act"], "the same: success, steps, chunks"),
        (["run", "4", "--act", "--from", toy.uri], "and what the policy does, bit for bit"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["replay", *arguments])
        shown = capsys.readouterr()
        assert (exit_.value.code, shown.err) == (0, "") and told in shown.out
    with pytest.raises(SystemExit):
        main(["replay", "run", "--list", "--axis", "iid"])
    assert "draw" in capsys.readouterr().out.splitlines()[0]


def test_damaged_results_are_one_line_and_stay(toy, tmp_path):
    """Catches: good episodes that go with a damaged line."""
    toy("--out", "run")
    folder = tmp_path / "run" / "eval-sft"
    whole = (folder / "results.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    damaged = b"".join([*lines[:2], lines[2][:50] + b"\n", *lines[3:]])
    for name in ("results.jsonl", "stage.json"):
        (folder / name).unlink()
    partial = folder / "results.jsonl.partial"
    partial.write_bytes(damaged)
    code, _, errors = toy("--out", "run")
    assert code == 2 and len(errors) == 1 and toy.ended[-1] == "FAILED"
    assert errors[0].startswith("gripline: run/eval-sft/results.jsonl.partial: line 3: damaged: ")
    assert partial.read_bytes() == damaged
    partial.write_bytes(b"".join([*lines[:2], *lines[3:]]))  # as the message says
    assert toy("--out", "run")[0] == 0
    assert (folder / "results.jsonl").read_bytes() == whole


def test_two_processes_do_not_do_the_same_work(toy, tmp_path):
    profile = profiles.load(str(tmp_path / "toy.yaml"))
    inputs = command.RunInputs(profile, toy.uri)
    job = command._job(inputs, command.build_splits(profile), str(tmp_path / "run"), "eval-sft")
    with command._claimed(job, inputs, None):
        code, _, errors = toy("--out", "run")
        assert code == 2 and "another process is at this evaluation" in errors[0]


def test_an_interrupted_command_says_how_to_go_on(toy, tmp_path, monkeypatch):
    """Catches: a traceback, processes or a run in MLflow that look as if they went on."""

    def interrupted(*given: object, **named: object) -> None:
        raise command.Interrupted(2)

    stopped = []
    monkeypatch.setattr(command.processes, "stop_descendants", lambda: stopped.append(True))
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_run_missing", interrupted)
        code, _, errors = toy("--out", "run")
    assert (code, toy.ended, stopped) == (130, ["KILLED"], [True])
    assert "the same command continues" in errors[0]
    assert toy("--out", "run")[0] == 0

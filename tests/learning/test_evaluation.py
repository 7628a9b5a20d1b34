"""Evaluation: every listed episode once, and the same bytes whatever the number of workers."""

from pathlib import Path

import fsspec
import pytest
import ray
from learning.conftest import context_json

from components.eval import evaluate
from gripline import stages, stopping
from gripline.config import EvalConfig
from gripline.draws import draws
from gripline.envs.suites import env_spec
from gripline.errors import UserError
from gripline.policies import build_policy, save_policy
from gripline.results import ResultsWriter, read_results, write_results
from gripline.rollout.engine import Finished, standard_engine
from gripline.shards import Shard, found
from gripline.store import RunStore
from gripline.types import EpisodeRecord

SAMPLED = EvalConfig(decoding="sampled", temperature=1.3, samples=2)


def _evaluate(
    tuned, folder: Path, *, workers: int = 1, slots: int = 3, run_dir: str = "", config: EvalConfig | None = None
) -> bytes:
    profile, splits_path, splits, uri = tuned
    section = stages.EvalStage(
        env=profile.env,
        rollout=profile.rollout.model_copy(update={"env_workers": workers, "slots_per_worker": slots}),
        eval=config or profile.eval,
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


def test_sampled_results_are_bit_equal_for_1_and_3_workers(tuned, tmp_path):
    """Catches: noise that depends on who shares a batch; draws that are all the same, or no different from greedy."""
    files = [_evaluate(tuned, tmp_path / str(workers), workers=workers, config=SAMPLED) for workers in (1, 3)]
    assert files[0] == files[1]
    records = read_results(tmp_path / "1" / "copy.jsonl", draws(tuned[2].tested, SAMPLED))
    assert len(records) == 2 * len(tuned[2].tested)
    pairs = list(zip(records[::2], records[1::2], strict=True))
    assert sum(first.actions_TKA != second.actions_TKA for first, second in pairs) > len(pairs) / 2
    greedy = [EpisodeRecord.model_validate_json(line) for line in _evaluate(tuned, tmp_path / "greedy").splitlines()]
    assert [first.actions_TKA for first, _ in pairs] != [each.actions_TKA for each in greedy]


def test_another_decoding_is_another_evaluation(tuned, tmp_path):
    """Catches: results at one temperature that are kept as those at another, whose episodes have the same names."""
    cooler = SAMPLED.model_copy(update={"temperature": 0.5})
    assert _job(tuned, tmp_path, SAMPLED).fingerprint != _job(tuned, tmp_path, cooler).fingerprint
    assert _job(tuned, tmp_path).fingerprint == _job(tuned, tmp_path, EvalConfig(temperature=0.5)).fingerprint


def _job(tuned, run_dir: Path, config: EvalConfig | None = None) -> evaluate.EvalJob:
    profile, _, splits, uri = tuned
    section = stages.EvalStage(env=profile.env, rollout=profile.rollout, eval=config or profile.eval, seed=1)
    return evaluate.EvalJob(section, uri, splits.tested, RunStore(str(run_dir)), "eval-sft")


def test_merged_shards_are_the_unsharded_file(tuned, toy_engine, tmp_path, capsys):
    """Catches: shards that overlap, or whose file is in another order; a shard that is run twice."""
    context = stages.RunContext.model_validate_json(context_json(tmp_path, tuned[2]))
    whole = _job(tuned, tmp_path / "whole")
    outputs = evaluate.evaluate(whole, lambda: context, toy_engine)
    assert outputs["episodes_per_s"] > 0 and outputs["env_steps_per_s"] > outputs["episodes_per_s"]
    assert "episodes_per_s=" in capsys.readouterr().out

    for shard in Shard(1, 3).all:
        evaluate.evaluate_shard(_job(tuned, tmp_path / "run"), shard, toy_engine)
    kept = evaluate.evaluate_shard(_job(tuned, tmp_path / "run"), Shard(2, 3))
    assert "already finished, kept" in capsys.readouterr().out
    assert kept["episodes"] == len(Shard(2, 3).of(whole.specs))
    job = _job(tuned, tmp_path / "run")
    merged = evaluate.merge(job, found(job.store, job.stage), lambda: context)
    files = [tmp_path / name / "eval-sft" / "results.jsonl" for name in ("whole", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()
    names = ("episodes", "errors", "env_steps", "iid_success")
    assert [merged[name] for name in names] == [outputs[name] for name in names]
    assert evaluate.find(_job(tuned, tmp_path / "run")) is not None


def test_episodes_that_the_simulator_lost_are_run_again(tuned, toy_engine, tmp_path):
    """Catches: an infrastructure error that stays for ever, or that alone makes a rerun fail."""
    context = stages.RunContext.model_validate_json(context_json(tmp_path, tuned[2]))
    whole = evaluate.evaluate(_job(tuned, tmp_path / "run"), lambda: context, toy_engine)
    path = tmp_path / "run" / "eval-sft" / "results.jsonl"
    content, (first, *rest) = path.read_bytes(), read_results(path)
    lost = first.model_copy(update={"error": "GL context lost", "success": False, "actions_TKA": ()})
    write_results(path, [lost, *rest])
    stage = path.with_name("stage.json")
    stage.write_text(stage.read_text().replace('"errors": 0', '"errors": 1'))
    again = evaluate.evaluate(_job(tuned, tmp_path / "run"), lambda: context, toy_engine)
    assert (again["errors"], again["iid_success"]) == (0, whole["iid_success"])
    assert path.read_bytes() == content


class BrokenEngine:
    """Every simulator fails."""

    def run(self, specs, decoding):
        for index, spec in enumerate(specs):
            record = EpisodeRecord(spec=spec, success=False, num_steps=0, num_chunks=0, error="no GL")
            yield Finished(index, record, None)


def test_a_broken_simulator_stops_an_evaluation_that_has_nothing(tuned, toy_engine, tmp_path):
    """Catches: an evaluation of errors only that passes; the last error of many episodes that stops the others."""
    context = stages.RunContext.model_validate_json(context_json(tmp_path, tuned[2]))
    job = _job(tuned, tmp_path / "run")
    with pytest.raises(UserError, match="every simulator failed: no GL; see `gripline doctor`"):
        evaluate.evaluate(job, lambda: context, BrokenEngine())
    assert not (tmp_path / "run" / "eval-sft" / "results.jsonl").exists()

    evaluate.evaluate(_job(tuned, tmp_path / "other"), lambda: context, toy_engine)
    folder = tmp_path / "other" / "eval-sft"
    write_results(folder / "results.jsonl.partial", read_results(folder / "results.jsonl")[1:])
    for name in ("results.jsonl", "stage.json"):
        (folder / name).unlink()
    outputs = evaluate.evaluate(_job(tuned, tmp_path / "other"), lambda: context, BrokenEngine())
    assert (outputs["errors"], outputs["episodes"]) == (1, len(job.specs))


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

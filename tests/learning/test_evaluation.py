"""Evaluation: every listed episode once, the same bytes whatever the number of workers, and after a worker's death."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import ray
from learning.conftest import context_json

from components.eval import evaluate
from gripline import stages
from gripline.errors import UserError
from gripline.rollout.actors import Decoding
from gripline.rollout.engine import RolloutEngine


def _evaluate(tuned, folder: Path, *, workers: int = 1, slots: int = 3) -> bytes:
    profile, splits_path, splits, uri = tuned
    section = stages.EvalStage(
        env=profile.env,
        eval=profile.eval.model_copy(update={"env_workers": workers, "slots_per_worker": slots}),
        seed=1,
    )
    path = folder / "copy.jsonl"
    evaluate.run(
        context=context_json(folder, splits),
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


def test_another_policy_in_a_finished_folder_is_refused(tuned, tmp_path):
    _evaluate(tuned, tmp_path)
    stage_file = tmp_path / "eval-sft" / "stage.json"
    stage_file.write_text(stage_file.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(UserError, match="finished with other inputs"):
        _evaluate(tuned, tmp_path)


def test_episodes_of_a_killed_worker_are_run_again_and_come_out_the_same(tuned):
    profile, _, splits, uri = tuned
    specs = splits.lists["iid"] + splits.lists["ood"]
    with RolloutEngine(profile.env, uri, num_workers=2, slots_per_worker=2) as engine:
        calm = {done.record.spec.key: done.record for done in engine.run(specs, Decoding(greedy=True))}
        victim = ray.get(engine._workers[0].warm_up.remote(()))
        threading.Timer(0.02, os.kill, (victim, signal.SIGKILL)).start()
        stormy = {done.record.spec.key: done.record for done in engine.run(specs, Decoding(greedy=True))}
        deadline = time.monotonic() + 30
        while engine.last.retries == 0 and time.monotonic() < deadline:  # it outlived the run
            stormy = {done.record.spec.key: done.record for done in engine.run(specs, Decoding(greedy=True))}
        assert engine.last.retries > 0
    assert stormy == calm


def test_a_simulator_that_always_fails_is_an_infra_error_not_a_failure(tuned):
    profile, _, splits, uri = tuned
    good, bad = splits.lists["iid"][0], splits.lists["iid"][1].model_copy(update={"task": "toy-green"})
    with RolloutEngine(profile.env, uri, num_workers=1, slots_per_worker=1) as engine:
        records = {done.index: done.record for done in engine.run([good, bad], Decoding(greedy=True))}
    assert not records[0].error
    assert "toy-green" in records[1].error and not records[1].success


def test_a_policy_that_fails_in_the_middle_stops_the_run_at_once(tuned):
    profile, _, splits, uri = tuned
    too_long = splits.lists["iid"][0].model_copy(update={"instruction": "touch the red square " * 20})
    with (
        RolloutEngine(profile.env, uri, num_workers=1, slots_per_worker=1) as engine,
        pytest.raises(RuntimeError, match="policy server failed"),
    ):
        list(engine.run([too_long], Decoding(greedy=True)))


def test_a_policy_that_cannot_be_loaded_stops_the_run_at_once(tuned, tmp_path):
    with pytest.raises(ray.exceptions.RayError, match="no such checkpoint"):
        RolloutEngine(tuned[0].env, str(tmp_path / "nowhere"), num_workers=1, slots_per_worker=1)

"""RL whose state lies in an object store: what a killed attempt left there is continued by another process, exactly.

Nothing but the store is shared: each attempt has its own mirror, and the learner, a process of its own, another one.
"""

import json
import shutil
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import s3_server
from learning.conftest import context_json

from gripline import object_store, stages, stopping
from gripline.checkpoint import hash_at, read_manifest
from gripline.object_store import ObjectStore
from gripline.store import RunStore, fetch, written

pytest.importorskip("s3fs", reason="the s3 extra is not installed")
pytest.importorskip("moto", reason="moto is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("s3") / "moto.log"
    with s3_server.running(log) as started, pytest.MonkeyPatch.context() as patch:
        for name, value in started.environment.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdirs("runs", exist_ok=True)
        yield started


@pytest.fixture
def remote(tuned, server, request):
    """(profile, splits, URI of the SFT policy in the store, URI of an empty run)."""
    profile, splits_path, _, uri = tuned
    run_uri = f"s3://runs/{request.node.name.replace('[', '-').replace(']', '')}"
    with written(f"{run_uri}/sft/checkpoint") as folder:
        shutil.copytree(uri, folder)
    return profile, splits_path, f"{run_uri}/sft/checkpoint", run_uri


def _rl(remote, splits, run_uri: str, **changes):
    """One attempt."""
    from components.rl import train as rl

    profile, splits_path, policy_uri, _ = remote
    section = stages.RlStage(
        env=profile.env, rollout=profile.rollout, rl=profile.rl.model_copy(update=changes), seed=profile.seed
    )
    context = stages.RunContext.model_validate_json(context_json(Path(run_uri), splits))
    return rl.run(
        context=context.model_copy(update={"run_dir": run_uri}).model_dump_json(),
        config=section.model_dump_json(),
        policy_uri=policy_uri,
        splits_path=str(splits_path),
    )


@pytest.fixture(autouse=True)
def _actors_know_the_store(server, monkeypatch):
    """As pods do, by their environment."""
    import ray

    plain = ray.remote

    def with_environment(*arguments, **options):
        if "resources" in options:
            options["runtime_env"] = {"env_vars": server.environment}
        return plain(*arguments, **options)

    monkeypatch.setattr(ray, "remote", with_environment)


def _curve(run_uri: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (RunStore(run_uri).pull("rl/metrics.jsonl")).read_text().splitlines()]
    varies = ("seconds", "logprob_gap")
    return [
        {key: row[key] for key in row if not key.startswith("rollout/") and not key.endswith(varies)} for row in rows
    ]


def _weights(uri: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(fetch(uri) / "model.safetensors")


def test_an_attempt_that_stops_is_continued_by_the_next_as_if_it_had_not(remote, tuned, tmp_path):
    whole = _rl(remote, tuned[2], str(tmp_path / "whole"), surplus="keep")
    run_uri = remote[3]

    from gripline import progress

    with pytest.MonkeyPatch.context() as patch:
        emit = progress.emit

        def stop_at_two(stage, event, *, done=0, **rest):
            emit(stage, event, done=done, **rest)
            if event == "advance" and done == 2:
                stopping.request("the launcher is gone")

        patch.setattr(progress, "emit", stop_at_two)
        with pytest.raises(stopping.StopRequestedError):
            _rl(remote, tuned[2], run_uri, surplus="keep")
    stopping.clear()
    files = RunStore(run_uri).files("rl")
    state = [name.rpartition("/")[2] for name in files if name.startswith("rl/state/")]
    assert state == ["groups.safetensors", "learner.pt", "state.json"]

    resumed = _rl(remote, tuned[2], run_uri, surplus="keep")
    assert _curve(run_uri) == _curve(str(tmp_path / "whole"))
    assert resumed["env_steps"] == whole["env_steps"] and resumed["uri"] == f"{run_uri}/rl/checkpoint"
    first, second = _weights(whole["uri"]), _weights(resumed["uri"])
    assert all(np.array_equal(first[name], second[name]) for name in first)
    manifest = read_manifest(fetch(resumed["uri"]))
    assert resumed["hash"] == hash_at(resumed["uri"]) and manifest.provenance.parent == hash_at(remote[2])
    again = _rl(remote, tuned[2], run_uri, surplus="keep")
    assert again == resumed, "a finished stage is kept"


def test_weights_never_pass_the_driver(remote, tuned, monkeypatch):
    """Catches: 15 GB over the head's network and disk, for each checkpoint."""
    loads = []
    download, upload = ObjectStore.download, ObjectStore.upload
    monkeypatch.setattr(
        ObjectStore,
        "download",
        lambda self, name, local: (loads.append(f"{self.uri}/{name}"), download(self, name, local)),
    )

    def note_upload(self, local, name, **options):
        paths = [local, *local.rglob("*")]
        loads.extend(str(path) for path in paths)
        upload(self, local, name, **options)

    monkeypatch.setattr(ObjectStore, "upload", note_upload)
    _rl(remote, tuned[2], remote[3], iterations=2)
    assert loads and not [name for name in loads if name.endswith((".pt", "model.safetensors", "sft/checkpoint/"))]


def test_an_outage_in_the_middle_costs_only_its_time(remote, tuned, server, monkeypatch):
    from gripline import progress

    monkeypatch.setattr(object_store, "FIRST_PAUSE_S", 0.1)
    emit, outages = progress.emit, []

    def emit_and_break(stage, event, *, done=0, **rest):
        emit(stage, event, done=done, **rest)
        if event == "advance" and done == 2 and not outages:
            outages.append(server.away())
            outages[0].__enter__()
            threading.Timer(5.0, lambda: outages[0].__exit__(None, None, None)).start()

    monkeypatch.setattr(progress, "emit", emit_and_break)
    began_s = time.monotonic()
    outputs = _rl(remote, tuned[2], remote[3], checkpoint_every=1)
    assert outages and time.monotonic() - began_s >= 5
    assert outputs["iterations"] == 4 and len(_curve(remote[3])) == 4


@pytest.mark.slow
def test_a_learner_that_is_lost_is_replaced_and_goes_back_to_the_last_state(remote, tuned, tmp_path, capsys):
    """Catches: a policy pod whose loss ends the attempt, and takes the whole Ray cluster with it."""
    import ray

    from components.rl import train as rl
    from gripline import progress

    whole = _rl(remote, tuned[2], str(tmp_path / "whole"))
    learners = []
    with pytest.MonkeyPatch.context() as patch:
        train, emit = rl.Trainer.train, progress.emit
        patch.setattr(
            rl.Trainer,
            "train",
            lambda self, engine, learner: (learners.append(learner), train(self, engine, learner))[1],
        )

        def kill_once(stage, event, *, done=0, **rest):
            emit(stage, event, done=done, **rest)
            if event == "advance" and done == 3 and len(learners) == 1:
                ray.kill(learners[0])

        patch.setattr(progress, "emit", kill_once)
        outputs = _rl(remote, tuned[2], remote[3])
    assert len(learners) == 2 and "learner or experience lost" in capsys.readouterr().out
    assert _curve(remote[3]) == _curve(str(tmp_path / "whole"))
    assert outputs["env_steps"] == whole["env_steps"]

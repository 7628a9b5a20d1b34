"""The files between launcher and driver, in a folder and in an object store."""

import json
import math
import threading
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gripline import object_store
from gripline.cluster_config import ClusterConfig, EnvGroup, PolicyGroup
from gripline.errors import UserError
from gripline.kube.jobfiles import (
    Abandoned,
    Attempt,
    Heartbeat,
    JobFiles,
    Refusal,
    Request,
    Result,
    content_hash,
)
from gripline.rollout.shares import Shares, ray_gpus

REQUEST = Request(
    launch="launch-1",
    function="components.rl.train:run",
    arguments={"context": "{}", "config": "{}"},
    files={"splits_path": "in/splits_path"},
    outputs={"results_path": "out/results_path"},
    heartbeat_every_s=20,
    orphan_after_s=600,
    shares=Shares(policy_gpus=0.5, nodes_timeout_s=900),
    tags={"kfp": "run-7"},
)
ENTRIES = [
    REQUEST,
    Heartbeat(launcher="launch-1", count=3, time_s=1.5, rayjob="run-rl", rayjob_uid="u"),
    Attempt(attempt="a", time_s=2.0),
    Result(attempt="a", outputs={"uri": "s3://b/c", "iterations": 4, "success": 0.5}, files={"out/results_path": "f0"}),
    Refusal(attempt="a", where="rl", field="rl.lr", problem="is wrong", next_step="mend it"),
    Abandoned(attempt="a", reason="no launcher", time_s=3.0),
]


@pytest.fixture(params=["folder", "file-uri", "store"])
def run_dir(request, tmp_path):
    yield {
        "folder": str(tmp_path / "run"),
        "file-uri": f"file://{tmp_path}/run",
        "store": "memory://jobs/run/",
    }[request.param]
    files = fsspec.filesystem("memory")
    files.rm("/jobs", recursive=True) if files.exists("/jobs") else None


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.file)
def test_an_entry_is_read_as_it_was_written_by_another_process(run_dir, entry):
    writer, reader = JobFiles(run_dir, "rl"), JobFiles(run_dir, "rl")
    assert reader.read(type(entry)) is None
    writer.write(entry)
    assert reader.read(type(entry)) == entry
    writer.write(entry.model_copy(update={"attempt": "b", "launch": "b", "launcher": "b"}))
    assert reader.read(type(entry)) != entry, "the newest counts"
    assert JobFiles(run_dir, "eval-rl").read(type(entry)) is None
    writer.remove(type(entry), Attempt)
    assert reader.read(type(entry)) is None


def test_every_entry_has_a_file_of_its_own():
    assert len({entry.file for entry in ENTRIES}) == len(ENTRIES)
    assert [entry.file for entry in ENTRIES] == [
        "request.json", "heartbeat.json", "attempt.json", "result.json", "error.json", "abandoned.json"
    ]  # fmt: skip


def test_files_lie_where_the_contract_says(tmp_path):
    files = JobFiles(str(tmp_path), "rl")
    files.write(ENTRIES[2])
    assert json.loads((tmp_path / "jobs" / "rl" / "attempt.json").read_text()) == {"attempt": "a", "time_s": 2.0}
    assert [path.name for path in (tmp_path / "jobs" / "rl").iterdir()] == ["attempt.json"]


def test_numbers_keep_their_type_and_what_is_no_number_survives(run_dir):
    """Catches: an iteration count that comes back as 4.0, a NaN that becomes null and breaks the launcher."""
    files = JobFiles(run_dir, "rl")
    files.write(Result(attempt="a", outputs={"n": 4, "x": 1.0, "nan": math.nan, "inf": math.inf, "s": "4"}))
    found = files.read(Result)
    assert found is not None
    outputs = found.outputs
    assert (type(outputs["n"]), type(outputs["x"]), outputs["s"], outputs["inf"]) == (int, float, "4", math.inf)
    assert isinstance(outputs["nan"], float) and math.isnan(outputs["nan"])


def test_files_and_folders_travel_with_all_their_bytes(run_dir, tmp_path):
    (tmp_path / "demos" / "deep").mkdir(parents=True)
    (tmp_path / "demos" / "deep" / "frames").write_bytes(bytes(range(256)))
    (tmp_path / "demos" / "facts.json").write_text("{}")
    (tmp_path / "splits.json").write_text("[]")
    writer, reader = JobFiles(run_dir, "sft"), JobFiles(run_dir, "sft")
    writer.upload(tmp_path / "demos", "in/demos_path")
    writer.upload(tmp_path / "splits.json", "in/splits_path")
    demos = reader.download("in/demos_path", tmp_path / "there" / "demos_path")
    splits = reader.download("in/splits_path", tmp_path / "there" / "splits_path")
    assert content_hash(demos) == content_hash(tmp_path / "demos") and splits.read_text() == "[]"
    (tmp_path / "demos" / "facts.json").unlink()
    writer.upload(tmp_path / "demos", "in/demos_path")
    assert [path.name for path in reader.download("in/demos_path", tmp_path / "again").iterdir()] == ["deep"]
    with pytest.raises(UserError, match=r"jobs/sft/in/none: is missing"):
        reader.download("in/none", tmp_path / "none")
    with pytest.raises(UserError, match="does not exist"):
        writer.upload(tmp_path / "nothing", "in/none")


def test_the_hash_of_a_folder_depends_on_names_and_contents(tmp_path):
    for name, content in (("a", "1"), ("b", "2")):
        (tmp_path / "x" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "x" / name).write_text(content)
    first = content_hash(tmp_path / "x")
    (tmp_path / "x" / "b").rename(tmp_path / "x" / "c")
    renamed = content_hash(tmp_path / "x")
    (tmp_path / "x" / "c").write_text("3")
    assert len({first, renamed, content_hash(tmp_path / "x"), content_hash(tmp_path / "x" / "a")}) == 4


def test_an_entry_of_another_version_is_one_line(run_dir):
    files = JobFiles(run_dir, "rl")
    newer = json.dumps({"attempt": "a", "time_s": 1.0, "colour": "red"}).encode()
    files._folder.write("attempt.json", newer)
    with pytest.raises(UserError, match=r"jobs/rl/attempt\.json: cannot be read: Extra inputs"):
        files.read(Attempt)


@pytest.mark.parametrize(
    "change",
    [{"function": "os.system"}, {"function": "a:b(c)"}, {"files": {"x": "../x"}}, {"outputs": {"x": "in/../../x"}}],
)
def test_a_request_names_a_function_and_files_of_the_job_only(change):
    with pytest.raises(ValidationError):
        Request.model_validate(REQUEST.model_dump() | change)


def test_a_reader_never_sees_half_of_an_entry_nor_do_two_writers_disturb_each_other(tmp_path):
    """Two launchers may live for a moment: the one that is replaced and the one that replaces it."""
    files = JobFiles(str(tmp_path), "rl")
    files.write(Heartbeat(launcher="x", count=0, time_s=0))
    failures = []

    def write(launcher: str) -> None:
        mine = JobFiles(str(tmp_path), "rl")
        try:
            for count in range(40):
                mine.write(Heartbeat(launcher=launcher * 2000, count=count, time_s=0.0))
        except BaseException as error:  # noqa: BLE001  a thread's failure must reach the test
            failures.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert files.read(Heartbeat) is not None
    assert not failures
    assert [path.name for path in (tmp_path / "jobs" / "rl").iterdir()] == ["heartbeat.json"]


def test_a_store_that_is_away_is_not_an_entry_that_is_missing(monkeypatch):
    """Catches: an outage that looks like a launcher without heartbeats."""

    def refuse(self, *args, **options):
        raise ConnectionRefusedError("nobody listens")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", refuse)
    with pytest.raises(object_store.StoreOutageError):
        JobFiles("memory://jobs/run", "rl", patience_s=0).read(Heartbeat)


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "jobs" / "rl" / "heartbeat.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"heartbeat\.json: cannot be read"):
        JobFiles(str(tmp_path), "rl").read(Heartbeat)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (PolicyGroup(), (0.0, 0.0)),
        (PolicyGroup(gpus=1, servers_per_pod=2, learner_gpus=0.5), (0.25, 0.5)),
        (PolicyGroup(gpus=8, servers_per_pod=4, learner_gpus=4), (1.0, 4.0)),
        (PolicyGroup(gpus=4, servers_per_pod=2, learner_gpus=1), (1.0, 1.0)),  # 1.5 is no number that Ray takes
        (PolicyGroup(gpus=1, servers_per_pod=3), (0.3333, 0.0)),
    ],
)
def test_a_pods_gpus_are_dealt_out(policy, expected):
    shares = Shares.of(ClusterConfig(policy=policy, env=EnvGroup(gpus=1, workers_per_pod=4), start_timeout_s=77))
    assert (shares.policy_gpus, shares.learner_gpus) == expected
    assert (shares.env_gpus, shares.nodes_timeout_s) == (0.25, 77)


@given(gpus=st.integers(1, 16), processes=st.integers(1, 64))
def test_shares_are_what_ray_takes_and_never_more_than_there_is(gpus, processes):
    share = ray_gpus(gpus / processes)
    assert share <= 1 or share == int(share)
    assert round(share * 10_000) == pytest.approx(share * 10_000, abs=1e-9)
    assert share * processes <= gpus + 1e-9 and share > 0


def test_shares_travel_in_the_environment(monkeypatch):
    assert Shares.given() == Shares()
    monkeypatch.setenv("GRIPLINE_RAY_SHARES", Shares(learner_gpus=2.0).model_dump_json())
    assert Shares.given().learner_gpus == 2.0
    monkeypatch.setenv("GRIPLINE_RAY_SHARES", '{"gpus": 1}')
    with pytest.raises(UserError, match="GRIPLINE_RAY_SHARES: cannot be read"):
        Shares.given()


def test_the_launchers_imports_are_light():
    """Catches: seconds and hundreds of megabytes in a step that only waits."""
    import subprocess
    import sys

    code = "import gripline.kube.jobfiles, sys; print(sorted({'torch', 'ray', 'numpy', 'mlflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout == "[]\n"

"""Run directories, local and remote; the mark that a stage is finished; curves that survive a kill."""

import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from gripline import object_store, stopping
from gripline.atomic import PREFIX
from gripline.errors import UserError
from gripline.metrics import MetricsLog, read_metrics
from gripline.store import RunStore, StageResult, _fetched, digest, fetch, read_once, written


@pytest.fixture
def bucket():
    """An object store: fsspec's in-memory file system, which obeys the same interface as s3:// and gs://."""
    filesystem = fsspec.filesystem("memory")
    yield "memory://bucket/run-1"
    filesystem.rm("/bucket", recursive=True) if filesystem.exists("/bucket") else None


def test_a_stage_in_another_pod_sees_what_was_pushed_and_nothing_half_done(bucket):
    writer = RunStore(bucket)
    folder = writer.local / "sft" / "checkpoint"
    (folder / "deep").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "deep" / "file").write_bytes(b"x")
    (folder / "manifest.json").write_text("{}")
    assert not RunStore(bucket).pull("sft/checkpoint").exists()
    writer.push("sft/checkpoint")
    reader = RunStore(bucket)
    assert (reader.pull("sft/checkpoint") / "model.safetensors").read_bytes() == b"weights"
    assert (fetch(f"{bucket}/sft/checkpoint") / "deep" / "file").read_bytes() == b"x"


def test_the_file_that_marks_completeness_is_uploaded_last(bucket, monkeypatch):
    store = RunStore(bucket)
    folder = store.local / "checkpoint"
    folder.mkdir(parents=True)
    for name in ("manifest.json", "a.bin", "z.bin"):
        (folder / name).write_text(name)
    uploaded = []
    memory = type(fsspec.filesystem("memory"))
    put = memory.put_file
    monkeypatch.setattr(
        memory, "put_file", lambda self, a, b, **k: (uploaded.append(b.rsplit("/", 1)[1]), put(self, a, b, **k))
    )
    store.push("checkpoint")
    assert uploaded == ["a.bin", "z.bin", "manifest.json"]


def _files(bucket: str) -> list[str]:
    filesystem = fsspec.filesystem("memory")
    root = bucket.removeprefix("memory:/")
    return sorted(path.removeprefix(f"{root}/") for path in filesystem.find(root))


def _write(store: RunStore, *names: str) -> None:
    for name in names:
        (store.local / name).parent.mkdir(parents=True, exist_ok=True)
        (store.local / name).write_text(name)


def test_what_is_dropped_here_is_dropped_in_the_store(bucket, monkeypatch):
    """Catches: old states that fill the bucket; one whose mark outlives its tensors; files of other folders that go."""
    store = RunStore(bucket)
    _write(store, "rl/state/2/learner.pt", "rl/state/2/state.json", "rl/metrics.jsonl", "rl/state-of-affairs")
    store.push("rl")
    (store.local / "rl" / "state" / "2").rename(store.local / "rl" / "state" / "4")
    removed = []
    memory = type(fsspec.filesystem("memory"))
    rm = memory._rm
    monkeypatch.setattr(memory, "_rm", lambda self, path: (removed.append(path.rsplit("/", 2)[1:]), rm(self, path)))
    store.push("rl/state")
    assert removed == [["2", "state.json"], ["2", "learner.pt"]]
    states = ["rl/state/4/learner.pt", "rl/state/4/state.json"]
    assert _files(bucket) == ["rl/metrics.jsonl", "rl/state-of-affairs", *states]


def test_all_but_one_entry_of_a_folder_can_be_dropped_also_from_a_pod_that_made_none(bucket):
    """Catches: a resumed pod that deletes the best policy because it never downloaded it."""
    first = RunStore(bucket)
    _write(first, "rl/best/iteration-0/weights", "rl/best/iteration-4/weights", "rl/best/iteration-4/manifest.json")
    first.push("rl/best")
    resumed = RunStore(bucket)
    resumed.keep_only("rl/best", ["iteration-4"])
    assert _files(bucket) == ["rl/best/iteration-4/manifest.json", "rl/best/iteration-4/weights"]
    first.keep_only("rl/best", ["iteration-4"])
    assert [path.name for path in (first.local / "rl" / "best").iterdir()] == ["iteration-4"]


def test_a_pull_brings_what_is_missing_and_leaves_what_is_there(bucket):
    """Catches: a stage's own newer curve that the store's older one replaces."""
    other = RunStore(bucket)
    _write(other, "sft/state.pt", "sft/metrics.jsonl")
    other.push("sft")
    store = RunStore(bucket)
    _write(store, "sft/metrics.jsonl")
    (store.local / "sft" / "metrics.jsonl").write_text("mine")
    folder = store.pull("sft")
    assert (folder / "state.pt").read_text() == "sft/state.pt"
    assert (folder / "metrics.jsonl").read_text() == "mine"


def test_what_is_still_being_written_is_not_uploaded(bucket):
    store = RunStore(bucket)
    _write(store, f"rl/state/{PREFIX}iteration-4/learner.pt", "rl/state/iteration-2/learner.pt")
    store.push("rl/state")
    assert _files(bucket) == ["rl/state/iteration-2/learner.pt"]


def test_a_store_that_cannot_be_used_is_one_line(bucket, monkeypatch):
    """Catches: a driver's traceback of forty lines for a wrong password."""

    def refuse(self, *args, **options):
        raise PermissionError("403 Forbidden\n(request 12)")

    with pytest.raises(UserError, match="gopher://bucket/sft: cannot be used: Protocol not known"):
        RunStore("gopher://bucket").pull("sft")
    store = RunStore(bucket)
    _write(store, "sft/state.pt")
    store.push("sft")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", refuse)
    with pytest.raises(UserError, match=r"cannot be used: 403 Forbidden \(request 12\)"):
        RunStore(bucket).pull("sft")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", refuse)
    with pytest.raises(UserError, match="403"):
        store.push("sft")


def _failing(monkeypatch, method: str, failures: list[Exception]) -> list[str]:
    """The store's driver raises these first; returns the calls that were made, as they are made."""
    memory, calls = type(fsspec.filesystem("memory")), []
    whole = getattr(memory, method)

    def fail(self, *args, **options):
        calls.append(method)
        if failures:
            raise failures.pop(0)
        return whole(self, *args, **options)

    monkeypatch.setattr(memory, method, fail)
    monkeypatch.setattr(object_store, "FIRST_PAUSE_S", 0.001)
    return calls


@pytest.mark.parametrize("method", ["put_file", "get_file", "find", "cat_file", "pipe_file", "rm_file", "cp_file"])
@pytest.mark.parametrize(
    "away",
    [ConnectionResetError("reset by peer"), TimeoutError(), OSError(5, "InternalError"), OSError(16, "SlowDown")],
    ids=lambda error: type(error).__name__,
)
def test_every_call_waits_until_the_store_is_back(bucket, monkeypatch, method, away, capsys):
    """Catches: hours of RL that end because the store was away for a minute; a retry that does a half thing."""
    store = object_store.ObjectStore(bucket)
    store.write("a/weights", b"w")
    calls = _failing(monkeypatch, method, [away, away, away])
    path = Path(RunStore("memory://b").local) / "a"
    store.download("a", path)
    store.upload(path, "b")
    store.copy("b", "c")
    assert store.read("c/weights") == b"w"
    store.write("d", b"d")
    store.delete(["c/weights", "never there"])
    assert len(calls) > 3 and sorted(store.files()) == ["a/weights", "b/weights", "d"]
    assert capsys.readouterr().err.count("does not answer") == 1


def test_a_store_that_stays_away_is_one_line_after_the_time_it_is_given(bucket, monkeypatch):
    monkeypatch.setattr(object_store, "OUTAGE_S", 0.05)
    calls = _failing(monkeypatch, "cat_file", [ConnectionRefusedError("nobody listens")] * 1000)
    with pytest.raises(
        object_store.StoreOutageError, match=r"run-1/x: does not answer: nobody listens \(tried for 0 s"
    ):
        object_store.ObjectStore(bucket).read("x")
    assert len(calls) > 2
    with pytest.raises(object_store.StoreOutageError, match="nobody listens;"):
        object_store.ObjectStore(bucket, patience_s=0).read("x")


@pytest.mark.parametrize(
    "error",
    [
        PermissionError("Access Denied"),
        FileNotFoundError("The specified bucket does not exist"),
        OSError("Forbidden: https://storage.googleapis.com/b"),
        OSError(22, "InvalidBucketName"),
        type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"),
        type("HttpError", (Exception,), {"code": 401})("Invalid Credentials"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_waiting_cannot_mend_is_told_at_once(bucket, monkeypatch, error):
    """Catches: five minutes of silence for a misspelt bucket."""
    calls = _failing(monkeypatch, "find", [error] * 10)
    with pytest.raises(UserError, match="cannot be used"):
        object_store.ObjectStore(bucket).files()
    assert len(calls) == 1


@pytest.mark.parametrize("code", [429, 500, "503"])
def test_a_server_that_is_overloaded_is_asked_again(bucket, monkeypatch, code):
    calls = _failing(monkeypatch, "find", [type("HttpError", (Exception,), {"code": code})("try again")])
    assert object_store.ObjectStore(bucket).files() == {}
    assert len(calls) == 2


def test_a_missing_driver_names_what_to_install(monkeypatch):
    def missing(*args, **options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(
        UserError, match=r"s3://b/run: no driver for s3:// is installed; run: pip install 'gripline\[s3\]'"
    ):
        object_store.ObjectStore("s3://b/run").files()
    with pytest.raises(UserError, match=r"gs:// is installed; run: pip install 'gripline\[gs\]'"):
        RunStore("gs://b/run").pull("x")


def test_a_download_that_broke_off_is_made_again(bucket, monkeypatch):
    """Catches: half of a file that looks like a whole one."""
    store = object_store.ObjectStore(bucket)
    store.write("weights", b"0123456789")
    memory = type(fsspec.filesystem("memory"))
    get = memory.get_file
    sizes = [4]

    def get_some(self, path, local, **options):
        get(self, path, local, **options)
        if sizes:
            os.truncate(local, sizes.pop())

    monkeypatch.setattr(memory, "get_file", get_some)
    monkeypatch.setattr(object_store, "FIRST_PAUSE_S", 0.001)
    target = RunStore("memory://b").local / "weights"
    store.download("weights", target)
    assert target.read_bytes() == b"0123456789" and sizes == []


def test_a_folder_that_changes_is_incomplete_meanwhile(bucket, monkeypatch):
    """Catches: the manifest of one attempt over the weights of another, for whoever looks between two uploads."""
    first, second = RunStore(bucket), RunStore(bucket)
    _write(first, "sft/checkpoint/weights", "sft/checkpoint/manifest.json")
    first.push("sft")
    _write(second, "sft/checkpoint/weights", "sft/checkpoint/manifest.json")
    seen = []
    memory = type(fsspec.filesystem("memory"))
    put = memory.put_file

    def look(self, local, path, **options):
        seen.append((path.rpartition("/")[2], "sft/checkpoint/manifest.json" in _files(bucket)))
        put(self, local, path, **options)

    monkeypatch.setattr(memory, "put_file", look)
    second.push("sft")
    assert seen == [("weights", False), ("manifest.json", False)]
    assert _files(bucket) == ["sft/checkpoint/manifest.json", "sft/checkpoint/weights"]
    seen.clear()
    second.push("sft/checkpoint/manifest.json")
    assert seen == [("manifest.json", True)], "a mark alone is replaced in one go"


@pytest.mark.parametrize("remote", [False, True])
def test_a_folder_written_by_two_processes_appears_whole(tmp_path, bucket, remote):
    """The learner writes its part where it runs; nothing of it passes the driver."""
    uri = bucket if remote else str(tmp_path / "run")
    driver = RunStore(uri)
    if remote:
        fsspec.filesystem("memory").pipe_file("/bucket/run-1/rl/state/4/state.json", b"of a dead attempt")
    with driver.new_folder("rl/state/4") as (folder, part):
        assert RunStore(uri).files("rl/state") == []
        with written(f"{part}/learner.pt") as path:
            path.write_bytes(b"weights")
        (folder / "state.json").write_text("{}")
    assert RunStore(uri).files("rl/state") == ["rl/state/4/learner.pt", "rl/state/4/state.json"]
    assert (driver.local / "rl/state/4/learner.pt").exists() is not remote
    with read_once(f"{uri}/rl/state/4/learner.pt") as path:
        assert path.read_bytes() == b"weights"
    driver.copy("rl/state/4", "rl/checkpoint")
    assert RunStore(uri).files("rl/checkpoint") == ["rl/checkpoint/learner.pt", "rl/checkpoint/state.json"]
    with pytest.raises(UserError, match="does not exist"), read_once(f"{uri}/rl/none"):
        pass


@pytest.mark.parametrize("remote", [False, True])
def test_what_is_half_written_is_not_listed(tmp_path, bucket, remote):
    store = RunStore(bucket if remote else str(tmp_path / "run"))
    with pytest.raises(RuntimeError), store.new_folder("rl/state/4") as (folder, _):
        (folder / "state.json").write_text("{}")
        assert store.files("rl/state") == []
        raise RuntimeError("killed")
    assert store.files("rl/state") == []


@pytest.mark.parametrize("remote", [False, True])
def test_an_attempt_that_does_not_own_the_run_writes_nothing(tmp_path, bucket, remote):
    uri = bucket if remote else str(tmp_path / "run")
    store = RunStore(uri)
    _write(store, "rl/best/1/manifest.json")
    store.push("rl")

    def fence():
        raise stopping.SupersededError

    stopping.set_fence(fence)
    try:
        for change in (
            lambda: store.push("rl"),
            lambda: store.keep_only("rl/best", []),
            lambda: store.copy("rl/best/1", "rl/checkpoint"),
            lambda: store.new_folder("rl/state/1").__enter__(),
        ):
            with pytest.raises(stopping.SupersededError):
                change()
    finally:
        stopping.clear()
    assert RunStore(uri).files("rl") == ["rl/best/1/manifest.json"]


def test_processes_of_a_machine_can_share_what_they_fetch(bucket, tmp_path, monkeypatch):
    """Catches: 15 GB for every policy server of a pod."""
    _write(RunStore(bucket), "none")
    writer = RunStore(bucket)
    _write(writer, "shared/weights", "shared/manifest.json")
    writer.push("shared")
    monkeypatch.setenv("GRIPLINE_FETCHED", str(tmp_path / "fetched"))
    first = fetch(f"{bucket}/shared")
    assert first.is_relative_to(tmp_path) and (first / "weights").read_text() == "shared/weights"
    _fetched.cache_clear()  # as in another process
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", None)
    assert fetch(f"{bucket}/shared") == first


def test_the_disk_here_that_is_full_is_not_blamed_on_the_store(bucket, monkeypatch):
    def full(self, *args, **options):
        raise OSError(28, "No space left on device")

    writer, store = RunStore(bucket), RunStore(bucket)
    _write(writer, "sft/state.pt")
    writer.push("sft")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", full)
    with pytest.raises(UserError, match="the disk is full") as caught:
        store.pull("sft")
    assert str(store.local) in caught.value.where and list(store.local.rglob("*.pt")) == []


def test_a_checkpoint_is_downloaded_once(bucket):
    """Catches: the same 15 GB fetched three times by one stage."""
    writer = RunStore(bucket)
    _write(writer, "once/weights")
    writer.push("once")
    assert fetch(f"{bucket}/once") is fetch(f"{bucket}/once")


def test_nothing_stays_in_the_temporary_folder(tmp_path):
    """Catches: a mirror of every stage, for ever."""
    code = "from gripline.store import *; import fsspec; fsspec.filesystem('memory').pipe_file('/b/c/f', b'x');"
    code += "print((RunStore('memory://b').pull('c') / 'f').read_text(), (fetch('memory://b/c') / 'f').read_text())"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "x x\n"
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path, bucket):
    for uri in (str(tmp_path / "none"), f"{bucket}/none"):
        with pytest.raises(UserError, match="does not exist"):
            fetch(uri)


def test_a_finished_stage_is_found_again_and_refused_for_other_inputs(tmp_path):
    store = RunStore(str(tmp_path))
    assert StageResult.find(store, "sft", "f") is None
    StageResult(fingerprint="f", outputs={"uri": "u", "seconds": 1.5}).write(store, "sft")
    found = StageResult.find(RunStore(str(tmp_path)), "sft", "f")
    assert found is not None and found.outputs == {"uri": "u", "seconds": 1.5}
    with pytest.raises(UserError, match="finished with other inputs"):
        StageResult.find(store, "sft", "g")
    assert sorted(path.name for path in Path(tmp_path / "sft").iterdir()) == ["inputs.sha256", "stage.json"]
    (tmp_path / "sft" / "stage.json").write_text('{"finger')
    with pytest.raises(UserError, match="unreadable"):
        StageResult.find(store, "sft", "f")


@pytest.mark.parametrize("remote", [False, True])
def test_a_stage_that_was_begun_with_other_inputs_is_refused(tmp_path, bucket, remote):
    """Catches: episodes or states of one policy that are continued with another."""
    uri = bucket if remote else str(tmp_path)
    assert StageResult.find(RunStore(uri), "eval-sft", "f") is None
    assert StageResult.find(RunStore(uri), "eval-sft", "f") is None
    assert StageResult.find(RunStore(uri), "eval-rl", "g") is None
    with pytest.raises(UserError, match="begun with other inputs"):
        StageResult.find(RunStore(uri), "eval-sft", "g")


def test_digest_tells_apart_what_plain_joining_would_not():
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("a") == digest("a")


def test_curves_forget_what_a_resumed_stage_will_do_again(tmp_path):
    seen = []
    log = MetricsLog(tmp_path / "metrics.jsonl", lambda metrics, step: seen.append((step, metrics)))
    for step in range(4):
        log.log(step, {"loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as torn:
        torn.write('{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]
    log.rewind(2)
    log.log(2, {"loss": 9.0})
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0.0, 1.0, 9.0]
    assert seen[-1] == (2, {"loss": 9.0})

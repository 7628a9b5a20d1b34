"""Run directories, local and remote; the mark that a stage is finished; curves that survive a kill."""

import fsspec
import pytest

from gripline.errors import UserError
from gripline.metrics import MetricsLog, read_metrics
from gripline.store import RunStore, StageResult, digest, fetch


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
    (tmp_path / "sft" / "stage.json").write_text('{"finger')
    with pytest.raises(UserError, match="unreadable"):
        StageResult.find(store, "sft", "f")


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

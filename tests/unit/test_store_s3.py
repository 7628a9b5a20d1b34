"""Run directories in a store that speaks S3's real protocol, with its outages."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest
import s3_server

from gripline import object_store
from gripline.errors import UserError
from gripline.kube.jobfiles import Heartbeat, JobFiles
from gripline.object_store import ObjectStore, StoreOutageError
from gripline.store import RunStore, fetch, read_once, written

pytest.importorskip("s3fs", reason="the s3 extra is not installed")
pytest.importorskip("moto", reason="moto is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server.running(tmp_path_factory.mktemp("s3") / "moto.log") as started:
        yield started


@pytest.fixture
def bucket(server, monkeypatch, request):
    """An empty folder in a bucket."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").mkdirs("gripline-tests", exist_ok=True)
    name = request.node.name.replace("[", "-").replace("]", "")
    return f"s3://gripline-tests/{name}"


def _write(store: RunStore, *names: str) -> None:
    for name in names:
        (store.local / name).parent.mkdir(parents=True, exist_ok=True)
        (store.local / name).write_text(name)


def test_what_one_pod_pushes_another_pulls_and_what_is_dropped_is_gone(bucket):
    writer = RunStore(bucket)
    _write(writer, "rl/state/2/learner.pt", "rl/state/2/state.json", "rl/metrics.jsonl", "rl/state-of-affairs")
    writer.push("rl")
    reader = RunStore(bucket)
    assert reader.files("rl/state") == ["rl/state/2/learner.pt", "rl/state/2/state.json"]
    assert (reader.pull("rl") / "metrics.jsonl").read_text() == "rl/metrics.jsonl"
    _write(writer, "rl/state/4/learner.pt", "rl/state/4/state.json")
    writer.push("rl/state/4")
    assert len(reader.files("rl/state")) == 4, "a listing is never an old one"
    writer.keep_only("rl/state", ["4"])
    assert reader.files("rl") == [
        "rl/metrics.jsonl", "rl/state-of-affairs", "rl/state/4/learner.pt", "rl/state/4/state.json"
    ]  # fmt: skip
    reader.copy("rl/state/4", "rl/checkpoint")
    assert (fetch(f"{bucket}/rl/checkpoint") / "learner.pt").read_text() == "rl/state/4/learner.pt"
    assert fetch(f"{bucket}/rl/metrics.jsonl").read_text() == "rl/metrics.jsonl"


def test_a_reader_sees_what_another_process_has_just_written(bucket):
    """Catches: a listing, or a connection's cache, from before."""
    files = JobFiles(bucket, "rl")
    assert files.read(Heartbeat) is None
    for count in range(3):
        code = "import sys; from gripline.kube.jobfiles import *; JobFiles(sys.argv[1], 'rl').write("
        code += f"Heartbeat(launcher='l', count={count}, time_s=0.0))"
        subprocess.run([sys.executable, "-c", code, bucket], check=True, timeout=60)
        found = files.read(Heartbeat)
        assert found is not None and found.count == count
    files.remove(Heartbeat)
    assert files.read(Heartbeat) is None


def test_a_file_that_is_larger_than_one_request_travels_whole(bucket, tmp_path):
    content = os.urandom(2**20) * 120
    with written(f"{bucket}/rl/best/1") as folder:
        folder.mkdir()
        (folder / "weights").write_bytes(content)
        (folder / "manifest.json").write_text("{}")
    with read_once(f"{bucket}/rl/best/1") as folder:
        assert (folder / "weights").read_bytes() == content
        assert (folder / "manifest.json").read_text() == "{}"


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(object_store, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(object_store, "LONGEST_PAUSE_S", 0.5)


def _in_background(action):
    """Start it; returns a function that waits for its end and raises what it raised."""
    errors = []

    def run():
        try:
            action()
        except BaseException as error:  # noqa: BLE001  handed on below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def join():
        thread.join(300)
        assert not thread.is_alive()
        if errors:
            raise errors[0]

    return join


def test_an_upload_that_an_outage_interrupts_goes_on_afterwards(server, bucket, impatient):
    store = RunStore(bucket)
    for number in range(30):
        _write(store, f"sft/checkpoint/{number:03d}")
    _write(store, "sft/checkpoint/manifest.json")
    join = _in_background(lambda: store.push("sft"))
    reader = ObjectStore(bucket)
    while not reader.files("sft"):
        time.sleep(0.01)
    with server.away():
        time.sleep(3.0)
    join()
    assert len(reader.files("sft")) == 31


def test_a_read_during_an_outage_is_neither_nothing_nor_for_ever(server, bucket, impatient, monkeypatch):
    """Catches: a launcher that is taken for dead because the store is; a stage that hangs."""
    JobFiles(bucket, "rl").write(Heartbeat(launcher="l", count=1, time_s=0.0))
    monkeypatch.setattr(object_store, "OUTAGE_S", 2.0)
    with server.away():
        with pytest.raises(StoreOutageError, match="does not answer"):
            JobFiles(bucket, "rl", patience_s=0).read(Heartbeat)
        with pytest.raises(StoreOutageError, match=r"tried for 2 s"):
            RunStore(bucket).pull("rl")
    assert JobFiles(bucket, "rl").read(Heartbeat) is not None


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", ["away", "silent"])
def test_a_minute_without_the_store_costs_nothing_but_the_minute(server, bucket, how):
    """With the pauses and the patience that ship."""
    store = RunStore(bucket)
    _write(store, "rl/state/2/learner.pt", "rl/state/2/state.json")
    with getattr(server, how)():
        began_s = time.monotonic()
        join = _in_background(lambda: store.push("rl"))
        time.sleep(60)
    join()
    assert 60 <= time.monotonic() - began_s < 120
    assert RunStore(bucket).files("rl") == ["rl/state/2/learner.pt", "rl/state/2/state.json"]


def test_no_such_bucket_is_one_line_at_once_and_none_is_made(bucket):
    """Catches: a misspelt bucket that is created, and five minutes of silence."""
    began_s = time.monotonic()
    store = RunStore("s3://gripline-tset/run")
    _write(store, "sft/weights")
    with pytest.raises(UserError, match=r"s3://gripline-tset/run/sft.*: cannot be used: The specified bucket does not"):
        store.push("sft")
    with pytest.raises(UserError, match="bucket does not exist"):
        JobFiles("s3://gripline-tset/run", "rl").write(Heartbeat(launcher="l", count=1, time_s=0.0))
    assert time.monotonic() - began_s < 10
    assert fsspec.filesystem("s3", use_listings_cache=False).ls("/") == ["gripline-tests"]


def _fails(environment: dict[str, str]) -> str:
    """The line in which a new process, with this environment, is refused."""
    code = (
        "import time; from gripline.store import RunStore; from gripline.errors import UserError\n"
        "began = time.monotonic()\n"
        "try: RunStore('s3://gripline-tests/run').pull('x')\n"
        "except UserError as error: print(error.line); assert time.monotonic() - began < 20"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_wrong_credentials_are_one_line_at_once(tmp_path):
    with s3_server.running(tmp_path / "moto.log", checks_credentials=True) as strict:
        told = _fails(strict.environment)
    assert told.startswith("s3://gripline-tests/run/x: cannot be used: ") and told.count("\n") == 1
    assert "Access Key" in told or "Forbidden" in told or "Access Denied" in told


def test_no_credentials_are_one_line_at_once(server, tmp_path):
    nothing = {
        "AWS_ENDPOINT_URL": server.environment["AWS_ENDPOINT_URL"],
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": str(tmp_path),
    }
    told = _fails(nothing)
    assert told.startswith("s3://gripline-tests/run/x: cannot be used: ") and "credentials" in told


def test_a_half_written_folder_is_not_complete_and_the_next_attempt_makes_it_whole(server, bucket, impatient, tmp_path):
    """A process that is killed in the middle of an upload. Catches: a manifest whose weights are not there."""
    code = (
        "import sys; from gripline.store import RunStore\n"
        "store = RunStore(sys.argv[1]); folder = store.local / 'sft' / 'checkpoint'; folder.mkdir(parents=True)\n"
        "for number in range(200): (folder / f'{number:03d}').write_bytes(b'x' * 10_000)\n"
        "(folder / 'manifest.json').write_text('{}'); print('ready', flush=True); store.push('sft')"
    )
    killed = subprocess.Popen([sys.executable, "-c", code, bucket], stdout=subprocess.PIPE)
    reader = ObjectStore(bucket)
    while not reader.files("sft"):
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert killed.stdout is not None
    killed.stdout.close()
    there = reader.files("sft")
    assert 0 < len(there) < 200 and not any(object_store.is_mark(name) for name in there)
    subprocess.run([sys.executable, "-c", code, bucket], check=True, stdout=subprocess.DEVNULL, timeout=100)
    assert len(reader.files("sft")) == 201


def test_the_driver_of_a_rayjob_works_on_it(bucket, tmp_path):
    """From its inputs to its result, through the store alone."""
    from gripline.kube.jobfiles import Request, Result

    (tmp_path / "words").write_text("hello ")
    files = JobFiles(bucket, "rl")
    files.upload(tmp_path / "words", "in/words_path")
    files.write(
        Request(
            launch="l",
            function="tiny_stages:succeed",
            arguments={"folder": str(tmp_path), "word": "world"},
            files={"words_path": "in/words_path"},
            outputs={"results_path": "out/results_path"},
            heartbeat_every_s=0.2,
            orphan_after_s=60,
        )
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent / "kube")}
    command = [sys.executable, "-m", "gripline.kube.driver", bucket, "rl"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    result = files.read(Result)
    assert result is not None and json.loads(json.dumps(result.outputs))["steps"] == 3
    assert files.download("out/results_path", tmp_path / "fetched").read_text() == "hello world"

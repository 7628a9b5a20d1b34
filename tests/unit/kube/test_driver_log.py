"""The container that prints the driver's log: everything once, in order, to the last line."""

import io
import signal
import subprocess
import sys
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gripline.kube.driver_log import CHUNK_BYTES, copy_new

NAME = "session_2026-11-21_14-00-00_000000_17/logs/job-driver-laptop-rl-x7b2.log"


def make_log(folder: Path, text: bytes = b"", name: str = NAME) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    return path


def test_before_ray_has_started_there_is_nothing(tmp_path: Path) -> None:
    out = io.BytesIO()
    copy_new(tmp_path / "absent", {}, out)
    assert out.getvalue() == b""


@given(st.lists(st.binary(max_size=50)))
def test_what_is_added_comes_once(tmp_path_factory, parts: list[bytes]) -> None:
    """Catches: lines that are lost between two looks, or told twice."""
    log = make_log(tmp_path_factory.mktemp("ray"))
    out, positions = io.BytesIO(), {}
    for part in parts:
        with log.open("ab") as file:
            file.write(part)
        copy_new(log.parents[2], positions, out)
    assert out.getvalue() == b"".join(parts)


def test_a_long_log_is_copied_whole(tmp_path: Path) -> None:
    text = bytes(range(256)) * (2 * CHUNK_BYTES // 256) + b"end"
    make_log(tmp_path, text)
    out = io.BytesIO()
    copy_new(tmp_path, {}, out)
    assert out.getvalue() == text


def test_ray_s_link_to_the_newest_session_and_its_other_logs_are_left_out(tmp_path: Path) -> None:
    """Catches: every line twice."""
    log = make_log(tmp_path, b"line\n")
    make_log(tmp_path, b"noise\n", NAME.replace("job-driver-", "raylet-"))
    (tmp_path / "session_latest").symlink_to(log.parents[1])
    out = io.BytesIO()
    copy_new(tmp_path, {}, out)
    assert out.getvalue() == b"line\n"


def test_the_last_words_come_before_the_end(tmp_path: Path) -> None:
    """Catches: a log that ends without the driver's error, because the container is told to go first."""
    log = make_log(tmp_path, b"begin\n")
    command = [sys.executable, "-m", "gripline.kube.driver_log", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begin\n"  # by now it listens to the signal
    with log.open("ab") as file:
        file.write(b"last words\n")
    process.send_signal(signal.SIGTERM)
    begun_s = time.monotonic()
    rest, _ = process.communicate(timeout=20)
    assert (rest, process.returncode) == (b"last words\n", 0)
    assert time.monotonic() - begun_s < 10


def test_it_is_small() -> None:
    """Catches: an import that the container's 64 MiB would not hold."""
    code = (
        "import sys; import gripline.kube.driver_log; print(len([m for m in sys.modules if m in ('yaml', 'pydantic')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "0"

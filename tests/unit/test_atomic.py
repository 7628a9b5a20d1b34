"""What `gripline.atomic` writes is there whole or not at all: after errors, full disks, and a kill in the middle."""

import errno
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gripline.atomic import disk_errors, whole, write_whole
from gripline.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def make_file(path: Path) -> None:
    path.write_text("new")


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "deep").mkdir()
    (path / "deep" / "file").write_text("new")


def test_a_file_and_a_folder_appear_in_new_places_and_in_place_of_old_ones(tmp_path: Path) -> None:
    """Catches: an old folder's files among the new ones, a temporary that stays."""
    for _ in range(2):
        write_whole(tmp_path / "new" / "file", "text")
        with whole(tmp_path / "folder") as temporary:
            make_folder(temporary)
        assert names(tmp_path) == ["folder", "folder/deep", "folder/deep/file", "new", "new/file"]
        (tmp_path / "folder" / "old").write_text("")
        (tmp_path / "new" / "file").write_text("a longer text")
    write_whole(tmp_path / "new" / "file", "text")
    assert (tmp_path / "new" / "file").read_text() == "text"


@pytest.mark.parametrize("make", [make_file, make_folder])
@pytest.mark.parametrize(
    "error", [ValueError("ours"), KeyboardInterrupt("ours"), RuntimeError("ours"), OSError("no errno")]
)
def test_a_body_that_fails_leaves_what_was_there(
    tmp_path: Path, make: Callable[[Path], None], error: BaseException
) -> None:
    """Catches: half of a result under the final name, and an error of ours that is told as the disk's."""
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "old").write_text("old")
    with pytest.raises(type(error), match=str(error)), whole(tmp_path / "it") as temporary:
        make(temporary)
        raise error
    assert names(tmp_path) == ["it", "it/old"]


class _ElsewhereError(Exception):
    """Such as Ray's, which carries the text of what a worker raised."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free space and run again"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be written: Permission denied"),
        (_ElsewhereError("Traceback …\nOSError: [Errno 28] No space left on device"), "the disk is full"),
    ],
)
def test_what_the_disk_refuses_is_one_line(tmp_path: Path, error: Exception, told: str) -> None:
    with pytest.raises(UserError) as caught, whole(tmp_path / "it") as temporary:
        make_folder(temporary)
        raise error
    assert caught.value.line.startswith(f"{tmp_path / 'it'}: {told}") and "\n" not in caught.value.line
    assert names(tmp_path) == []


def test_a_file_in_the_way_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: File exists"):
        write_whole(tmp_path / "file" / "it", "")


@pytest.fixture
def _no_large_files() -> Iterator[None]:
    """The kernel lets no file grow past 64 MiB, as a full disk would not; the log of the tests is one, too."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**26, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("_no_large_files")
@pytest.mark.parametrize("library", ["torch", "safetensors", "python"])
def test_a_library_that_cannot_write_is_one_line(tmp_path: Path, library: str) -> None:
    """Catches: a library whose error for a full disk is not known here; each has one of its own."""

    def save(path: Path) -> None:
        if library == "torch":
            import torch

            torch.save({"weights": torch.zeros(2**25)}, path)
        elif library == "safetensors":
            from safetensors.numpy import save_file

            save_file({"weights": np.zeros(2**24)}, path)
        else:
            path.write_bytes(bytes(2**27))

    with pytest.raises(UserError, match=r"File too large|the disk is full"), whole(tmp_path / "it") as temporary:
        save(temporary)
    assert names(tmp_path) == []


def test_a_sink_that_is_kept_open_tells_of_a_full_disk() -> None:
    with pytest.raises(UserError, match="log: the disk is full"), disk_errors(Path("log")), open("/dev/full", "w") as f:
        f.write("x")


KILLED = """
import os, signal, sys
from pathlib import Path
from gripline.atomic import whole
with whole(Path(sys.argv[1])) as temporary:
    if sys.argv[2] == "folder":
        temporary.mkdir()
        temporary /= "file"
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_leaves_the_old_and_the_next_attempt_tidies_up(tmp_path: Path, kind: str) -> None:
    """Catches: a torn file under the final name, and the killed attempt's half that ends up in the next one's."""
    make = {"file": make_file, "folder": make_folder}[kind]
    make(tmp_path / "it")
    before = names(tmp_path)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "it"), kind], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert [name for name in names(tmp_path) if not name.startswith(".part-")] == before
    with whole(tmp_path / "it") as temporary:
        make(temporary)
    assert names(tmp_path) == before

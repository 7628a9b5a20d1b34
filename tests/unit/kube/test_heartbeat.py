"""The launcher's sign of life: it goes on whatever the store does."""

import threading
import time
from pathlib import Path

import pytest
from http_api import wait_for

from gripline.kube.heartbeat import TELL_AFTER, Heart
from gripline.kube.jobfiles import Entry, Heartbeat, JobFiles


class Recorder(JobFiles):
    """Keeps what is written, and fails as told."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), "rl")
        self.beats: list[Heartbeat] = []
        self.tries = 0
        self.fails = False
        self.hangs: threading.Event | None = None

    def write(self, entry: Entry) -> None:
        self.tries += 1
        if self.hangs is not None:
            self.hangs.wait(30)
        if self.fails:
            raise RuntimeError("a driver's own error")
        assert isinstance(entry, Heartbeat)
        self.beats.append(entry)


@pytest.fixture
def files(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


def test_beats_change_and_name_the_rayjob(files: Recorder) -> None:
    with Heart(files, "me", 0.02, print) as heart:
        wait_for(lambda: len(files.beats) >= 3)
        heart.names("a-rl", "uid-1")
        wait_for(lambda: files.beats[-1].rayjob_uid == "uid-1")
    counts = [beat.count for beat in files.beats]
    assert counts == sorted(set(counts)) and {beat.launcher for beat in files.beats} == {"me"}


def test_the_rayjob_is_named_at_once(files: Recorder) -> None:
    """Catches: a driver that starts before the next beat, and does not know which RayJob it is of."""
    with Heart(files, "me", 3600, print) as heart:
        wait_for(lambda: len(files.beats) == 1)
        heart.names("a-rl", "uid-1")
        wait_for(lambda: len(files.beats) == 2)
    assert files.beats[-1].rayjob == "a-rl"


def test_failing_store_ends_nothing_and_is_told_once(files: Recorder) -> None:
    told: list[str] = []
    files.fails = True
    with Heart(files, "me", 0.01, told.append):
        wait_for(lambda: files.tries > 3 * TELL_AFTER)
        assert len(told) == 1 and "a driver's own error" in told[0]
        files.fails = False
        wait_for(lambda: bool(files.beats))


def test_hanging_store_does_not_hold_the_end(files: Recorder) -> None:
    """Catches: a step that cannot end because its last heartbeat waits for a dead connection."""
    files.hangs = threading.Event()
    started = time.monotonic()
    with Heart(files, "me", 0.01, print):
        wait_for(lambda: files.tries > 0)
    assert time.monotonic() - started < 5
    files.hangs.set()

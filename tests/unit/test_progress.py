"""What a stage tells: events in a file, and how it ended by its exit code."""

import errno
import json
from pathlib import Path

import pytest

from gripline import progress
from gripline.errors import UserError


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(progress.FILE_VARIABLE, str(tmp_path / "progress.jsonl"))
    return tmp_path / "progress.jsonl"


def told(path: Path) -> list[tuple[str, str]]:
    return [(one["event"], one["text"]) for one in map(json.loads, path.read_text().splitlines())]


def test_stage_is_framed(events: Path) -> None:
    with progress.stage("sft"):
        progress.emit("sft", "advance", done=1, total=2, metrics={"loss": 0.5})
    assert [event for event, _ in told(events)] == ["start", "advance", "end"]


def test_users_mistake_is_exit_code_2_and_one_line(events: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, progress.stage("sft"):
        raise UserError("a.yaml", "rl.lr", "is odd", "make it even")
    assert ended.value.code == 2
    assert told(events)[-1] == ("error", "a.yaml: rl.lr: is odd; make it even")
    assert capsys.readouterr().err == "gripline: a.yaml: rl.lr: is odd; make it even\n"


def test_full_disk_is_the_users_to_mend(events: Path) -> None:
    """Catches: a traceback for a full disk, wherever in a stage it shows."""
    with pytest.raises(SystemExit) as ended, progress.stage("sft"):
        raise OSError(errno.ENOSPC, "No space left on device", "/data/policy.bin")
    assert ended.value.code == 2
    assert told(events)[-1] == ("error", "/data/policy.bin: the disk is full; free space and start the same run again")


def test_disk_too_full_for_the_event_still_ends_with_2(events: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SystemExit) as ended, progress.stage("sft"):
        monkeypatch.setattr(progress, "emit", full)
        full()
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("shape (3,)\nand more"), "ValueError: shape (3,)"),
        (OSError(errno.EACCES, "denied"), "PermissionError: [Errno 13] denied"),
        (RuntimeError("ray::f()\n  File x.py, line 3\nValueError: inner"), "ValueError: inner"),  # a remote traceback
    ],
)
def test_our_mistake_keeps_its_traceback(events: Path, error: Exception, text: str) -> None:
    with pytest.raises(type(error)), progress.stage("sft"):
        raise error
    assert told(events)[-1] == ("crash", text)

"""The folder of a local run: chosen, locked, continued or refused. A finished run is never written to again.

`profile.yaml` and `checkpoint.txt` say which run it is; `summary.json` with a measured peak memory, which is written
last, says that it is finished.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gripline.errors import UserError
from gripline.inputs import PROFILE_FILE, RunInputs

ROOT = Path("runs")
SUMMARY_FILE = "summary.json"
LOCK_FILE = ".lock"
_OTHER = "choose another --out"


@dataclass(frozen=True)
class RunFolder:
    """A locked folder. Passing `lock_descriptor` to a child process keeps the lock until that has ended too."""

    path: Path
    continued: bool
    lock_descriptor: int

    @property
    def summary(self) -> Path:
        """Where the last stage writes what the run found."""
        return self.path / SUMMARY_FILE


@contextmanager
def claim(inputs: RunInputs, out: Path | None) -> Iterator[RunFolder]:
    """Lock the folder to run in: `out`, or `runs/<profile>-<n>`.

    Without `out`, the newest folder of this profile is continued if it is unfinished, not in use and of equal inputs;
    otherwise the next number is taken. Raises UserError when `out` is finished, in use, of other inputs, or of others.
    """
    path = (out if out is not None else _next_folder(inputs)).absolute()
    if path.is_dir():
        _check(path, inputs)  # before the lock file is made: a refused folder is left as it was
    descriptor = _open_lock(path)
    try:
        if not _try_lock(descriptor):
            raise UserError(str(path), "--out", "another run is using it", f"wait for it, or {_OTHER}")
        _check(path, inputs)
        continued = (path / PROFILE_FILE).exists()
        if not continued:
            inputs.write(path)
        yield RunFolder(path, continued, descriptor)
    finally:
        os.close(descriptor)


def is_finished(path: Path) -> bool:
    """Whether a run ended here: its summary is there and holds what is measured last."""
    try:
        summary = json.loads((path / SUMMARY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(summary, dict) and "peak_memory_mb" in summary and summary["peak_memory_mb"] > 0


def _next_folder(inputs: RunInputs) -> Path:
    name = inputs.profile.name
    numbers = [path.name.removeprefix(f"{name}-") for path in ROOT.glob(f"{name}-*")]
    newest = max((int(number) for number in numbers if number.isdecimal()), default=0)
    if newest and _can_continue(ROOT / f"{name}-{newest}", inputs):
        return ROOT / f"{name}-{newest}"
    return ROOT / f"{name}-{newest + 1}"


def _can_continue(path: Path, inputs: RunInputs) -> bool:
    try:
        _check(path, inputs)
        descriptor = _open_lock(path)
    except UserError:
        return False
    try:
        return _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _check(path: Path, inputs: RunInputs) -> None:
    """Raise UserError when this run must not use the folder."""
    if is_finished(path):
        raise UserError(str(path), "--out", "holds a finished run", _OTHER)
    strangers = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    if strangers and PROFILE_FILE not in strangers:
        raise UserError(str(path), "--out", f"is not a run folder: it holds {strangers[0]}", _OTHER)
    difference = inputs.difference(path)
    if difference:
        problem = f"holds an unfinished run of other inputs: {difference}"
        raise UserError(str(path), "--out", problem, f"give the same, or {_OTHER}")


def _open_lock(path: Path) -> int:
    try:
        path.mkdir(parents=True, exist_ok=True)
        return os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(str(path), "--out", f"cannot be used: {error.strerror}", _OTHER) from error


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

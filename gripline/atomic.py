"""Files and folders that are there whole or not at all, whatever ends the process that writes them."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gripline.errors import UserError

PREFIX = ".part-"
"""Before the name of what is still being written."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A free path beside `path`, for the body to make a file or a folder at; on leaving, that is fsynced and renamed.

    Until then `path` is what it was. When the body fails nothing is left of it; what a killed process left goes with
    the next attempt. Raises UserError when the disk does not take it.
    """
    temporary = path.with_name(f"{PREFIX}{path.name}")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove(temporary)
            yield temporary
            for written in (*temporary.rglob("*"), temporary):
                _sync(written)
            if path.is_dir():  # a rename replaces a file, but no folder
                shutil.rmtree(path)
            temporary.rename(path)
            _sync(path.parent)
    finally:
        _remove(temporary)


def write_whole(path: Path, text: str) -> None:
    """Write a text file. Raises UserError when the disk does not take it."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what any library raises when the disk does not take `path` into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torch, safetensors and Ray have classes of their own for it
        problem, next_step = _refusal(error)
        if not problem:
            raise
        raise UserError(str(path), "", problem, next_step) from error


def _refusal(error: Exception) -> tuple[str, str]:
    """(what the disk refused, the next step); empty for an error of another kind."""
    number = error.errno if isinstance(error, OSError) else None
    told = re.search(r"(?:\[Errno |os error )(\d+)", str(error))
    if number is None and told is not None:
        number = int(told[1])
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full", "free space and run again"
    if number is not None:
        return f"cannot be written: {os.strerror(number)}", "mend its permissions or choose another place"
    if "inline_container.cc" in str(error):  # torch.save says no more
        return "the disk is full or fails", "free space and run again"
    return "", ""


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

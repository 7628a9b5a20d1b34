"""Files in an object store (s3://…, gs://…), through fsspec, as one process of several that use it.

A call waits until an outage is over; what no waiting would mend (no such bucket, access denied, no driver) is one line
at once. A file appears whole or not at all, as object stores do it; of a folder the marks of completeness come last and
go first. Listings are never cached: other processes write here.
"""

import contextlib
import errno
import random
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from gripline.atomic import PREFIX, whole
from gripline.errors import UserError

OUTAGE_S = 300.0
"""How long a call tries before it gives up."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
MARKS = ("manifest.json", "stage.json", "state.json")
"""The marks of completeness: uploaded and downloaded last, deleted first."""
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""Which extra of the package brings a scheme's driver."""

PERMANENT = (ImportError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError)
PERMANENT_OS = (PermissionError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
PERMANENT_NUMBERS = {
    errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENOSYS, errno.EMSGSIZE, errno.ENAMETOOLONG,
    getattr(errno, "EREMCHG", errno.ENOENT),  # s3fs: the bucket is in another region
}  # fmt: skip
PERMANENT_NAMES = {
    "NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ProfileNotFound",
    "ParamValidationError", "InvalidConfigError",
}  # fmt: skip
"""Classes of botocore and google.auth, which are not imported here."""
DISK_HERE = (errno.ENOSPC, errno.EDQUOT)
RETRIED_STATUS = (408, 429)
Answer = TypeVar("Answer")


class StoreOutageError(UserError):
    """The store did not answer for as long as a call waits. Nothing is wrong with the run: it can be continued."""


def is_mark(name: str) -> bool:
    """Does this file say that its folder is complete?"""
    return name.rpartition("/")[2] in MARKS


class ObjectStore:
    """A folder in an object store; names are relative to it. Every method raises UserError, see the module."""

    def __init__(self, uri: str, *, patience_s: float | None = None) -> None:
        """patience_s: how long a call tries when the store does not answer; 0: once. None: `OUTAGE_S`."""
        self.uri = uri.rstrip("/")
        self._patience_s = patience_s

    def files(self, below: str = "") -> dict[str, int]:
        """Name and size in bytes of every file of a folder; one entry if `below` names a file."""
        return self._call(_listed, below)

    def read(self, name: str) -> bytes | None:
        """A small file's content; None where there is none."""
        return self._call(_content, name)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, whole."""
        self._call(_put_content, name, content)

    def delete(self, names: Iterable[str]) -> None:
        """Delete files, marks first; what is gone already is no error."""
        for name in sorted(names, key=is_mark, reverse=True):
            self._call(_remove, name)

    def download(self, name: str, local: Path) -> None:
        """Of a file or folder what `local` has not yet, each file whole, marks last; nothing where there is nothing."""
        for each, size in sorted(self.files(name).items(), key=lambda item: is_mark(item[0])):
            target = local / each[len(name) :].lstrip("/")
            if not target.exists():
                with whole(target) as temporary:
                    self._call(_get, each, temporary, size)

    def upload(self, local: Path, name: str, *, prune: bool = True) -> None:
        """Make `name` equal to a local file or folder. prune: delete there what is not here.

        A mark that is there already goes first, unless it is all that changes.
        """
        sources = {f"{name}/{below}" if below else name: path for below, path in files_below(local)}
        there = self._make_room(name, sources)
        for each in sorted(sources, key=is_mark):
            self._call(_put, each, sources[each])
        if prune:
            self.delete(there - sources.keys())

    def copy(self, source: str, target: str) -> None:
        """Make one file or folder equal to another, inside of the store."""
        pairs = {f"{target}{each[len(source) :]}": each for each in self.files(source)}
        there = self._make_room(target, pairs)
        for each in sorted(pairs, key=is_mark):
            self._call(_copy, pairs[each], each)
        self.delete(there - pairs.keys())

    def _make_room(self, name: str, coming: Iterable[str]) -> set[str]:
        """Delete the marks of folders that are about to change; returns the names of the files that remain."""
        there = set(self.files(name))
        changing = [each for each in coming if not is_mark(each)]
        marked = {mark: f"{mark.rpartition('/')[0]}/" for mark in there if is_mark(mark)}
        stale = {mark for mark, folder in marked.items() if any(each.startswith(folder) for each in changing)}
        self.delete(stale)
        return there - stale

    def _call(self, action: Callable[..., Answer], name: str, *arguments: Any) -> Answer:
        """What `action(filesystem, root, name, *arguments)` returns, sooner or later."""
        patience_s = OUTAGE_S if self._patience_s is None else self._patience_s
        failing_since_s, pause_s = 0.0, FIRST_PAUSE_S
        while True:
            started_s = time.monotonic()
            try:
                return action(*self._open(), name, *arguments)
            except Exception as error:  # every driver has errors of its own
                if isinstance(error, OSError) and error.errno in DISK_HERE:
                    raise
                if is_permanent(error):
                    raise self._refused(name, error) from error
                failing_since_s = failing_since_s or started_s
                if time.monotonic() - failing_since_s + pause_s > patience_s:
                    raise self._away(name, error, patience_s) from error
                if failing_since_s == started_s:
                    told = f"gripline: {self.uri} does not answer ({_line(error)}); trying for {patience_s:.0f} s"
                    print(told, file=sys.stderr, flush=True)
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _open(self) -> tuple[Any, str]:
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(self.uri, use_listings_cache=False)
        return filesystem, root.rstrip("/")

    def _refused(self, name: str, error: Exception) -> UserError:
        scheme = self.uri.partition("://")[0]
        if isinstance(error, ImportError):
            next_step = f"run: pip install 'gripline[{EXTRAS[scheme]}]'" if scheme in EXTRAS else _line(error)
            return UserError(self.uri, "", f"no driver for {scheme}:// is installed", next_step)
        next_step = "check the scheme (s3://, gs://, or a folder), the bucket's name and the credentials"
        return UserError(_path(self.uri, name), "", f"cannot be used: {_line(error)}", next_step)

    def _away(self, name: str, error: Exception, patience_s: float) -> StoreOutageError:
        tried = f" (tried for {patience_s:.0f} s)" if patience_s else ""
        next_step = "start the same run again when the store is back"
        return StoreOutageError(_path(self.uri, name), "", f"does not answer: {_line(error)}{tried}", next_step)


def _path(root: str, name: str) -> str:
    return f"{root}/{name}".rstrip("/")


def _listed(filesystem: Any, root: str, name: str) -> dict[str, int]:
    found = filesystem.find(_path(root, name), detail=True)
    return {path[len(root) :].lstrip("/"): int(info["size"]) for path, info in found.items()}


def _content(filesystem: Any, root: str, name: str) -> bytes | None:
    try:
        return bytes(filesystem.cat_file(_path(root, name)))
    except FileNotFoundError:
        return None


def _put_content(filesystem: Any, root: str, name: str, content: bytes) -> None:
    filesystem.pipe_file(_path(root, name), content)


def _put(filesystem: Any, root: str, name: str, local: Path) -> None:
    # No `makedirs` before it: that of s3fs makes a bucket whose name was misspelt.
    filesystem.put_file(str(local), _path(root, name))


def _get(filesystem: Any, root: str, name: str, local: Path, size: int) -> None:
    filesystem.get_file(_path(root, name), str(local))
    if local.stat().st_size != size:
        raise ConnectionError(f"{name}: {local.stat().st_size} of {size} bytes came")


def _copy(filesystem: Any, root: str, source: str, target: str) -> None:
    filesystem.cp_file(_path(root, source), _path(root, target))


def _remove(filesystem: Any, root: str, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm_file(_path(root, name))


def is_permanent(error: Exception) -> bool:
    """Would the same call fail again however long one waits? What is unknown may pass."""
    if isinstance(error, PERMANENT + PERMANENT_OS) or PERMANENT_NAMES & {kind.__name__ for kind in type(error).__mro__}:
        return True
    if isinstance(error, OSError):
        return error.errno in PERMANENT_NUMBERS or str(error).startswith("Forbidden")  # gcsfs
    status = str(getattr(error, "code", ""))  # gcsfs's HttpError
    return status.isdigit() and 400 <= int(status) < 500 and int(status) not in RETRIED_STATUS


def files_below(local: Path) -> list[tuple[str, Path]]:
    """(relative name, path) of a file (with no name) or of every file of a folder, unless it is still being written."""
    if local.is_file():
        return [("", local)]
    paths = [(path.relative_to(local).as_posix(), path) for path in local.rglob("*") if path.is_file()]
    return [(name, path) for name, path in paths if f"/{PREFIX}" not in f"/{name}"]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

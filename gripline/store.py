"""Where a run's state lives: a folder on this machine, or a URI that fsspec understands (s3://…, gs://…).

Stages work on local files. With a local run directory these are the files themselves; with a remote one they are a
mirror, which goes when the process ends: `pull` downloads what is missing, `push` makes the store equal to it.
"""

import atexit
import errno
import functools
import hashlib
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from gripline.atomic import PREFIX, whole, write_whole
from gripline.errors import UserError

LAST_FILES = ("manifest.json", "stage.json", "state.json")
"""The marks of completeness: uploaded and downloaded last, deleted first."""
INPUTS_FILE = "inputs.sha256"
"""In a stage's folder: the fingerprint of what it was begun with."""


def is_local(uri: str) -> bool:
    """A plain path or a file:// URI."""
    return "://" not in uri or uri.startswith("file://")


def scratch_folder() -> Path:
    """A new folder that goes when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="gripline-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class RunStore:
    """One run directory. Every method raises UserError when a remote store cannot be used."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._remote = not is_local(uri)
        self.local = scratch_folder() if self._remote else Path(self.uri.removeprefix("file://"))

    def pull(self, name: str) -> Path:
        """The local path of a file or folder of the run; it may not exist. What is missing here is downloaded."""
        if self._remote:
            _download(f"{self.uri}/{name}", self.local / name)
        return self.local / name

    def push(self, name: str) -> None:
        """Make a file or folder visible to the other stages as it is here; what is gone here goes there too."""
        if not self._remote:
            return
        source = self.local / name
        files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
        names = [path.relative_to(self.local).as_posix() for path in files]
        here = [each for each in names if f"/{PREFIX}" not in f"/{each}"]
        with _remote_errors(self.uri):
            filesystem, root = _open(self.uri)
            there = [path.removeprefix(f"{root}/") for path in filesystem.find(f"{root}/{name}")]
            for each in sorted(here, key=_is_mark):
                target = f"{root}/{each}"
                filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
                filesystem.put_file(str(self.local / each), target)
            _delete(filesystem, root, set(there).difference(here))

    def keep_only(self, folder: str, names: Collection[str]) -> None:
        """Delete every other entry of a folder, here and in the store."""
        for entry in (self.local / folder).glob("*"):
            if entry.name not in names:
                shutil.rmtree(entry, ignore_errors=True)
        if self._remote:
            with _remote_errors(self.uri):
                filesystem, root = _open(f"{self.uri}/{folder}")
                there = [path.removeprefix(f"{root}/") for path in filesystem.find(root)]
                _delete(filesystem, root, [path for path in there if path.partition("/")[0] not in names])


def fetch(uri: str) -> Path:
    """A local file or folder with what `uri` names. Raises UserError when there is nothing."""
    path = Path(uri.removeprefix("file://")) if is_local(uri) else _fetched(uri)
    if not path.exists():
        raise UserError(uri, "", "does not exist", "give the path or URI of a checkpoint directory")
    return path


@functools.cache
def _fetched(uri: str) -> Path:
    """Once in a process: stages name a checkpoint several times, and none ever changes."""
    path = scratch_folder() / "fetched"
    _download(uri, path)
    return path


def _download(uri: str, target: Path) -> None:
    """Of a file or folder what `target` has not yet; nothing where there is nothing."""
    with _remote_errors(uri):
        filesystem, root = _open(uri)
        found = [path.removeprefix(root) for path in filesystem.find(root)]
    for name in sorted(found, key=_is_mark):
        local = Path(f"{target}{name}")
        if not local.exists():
            with whole(local) as temporary, _remote_errors(uri):
                filesystem.get_file(f"{root}{name}", str(temporary))


def _delete(filesystem: Any, root: str, names: Iterable[str]) -> None:
    for name in sorted(names, key=_is_mark, reverse=True):
        filesystem.rm_file(f"{root}/{name}")


def _is_mark(name: str) -> bool:
    return name.rpartition("/")[2] in LAST_FILES


def _open(uri: str) -> tuple[Any, str]:
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(uri)
    return filesystem, root.rstrip("/")


@contextmanager
def _remote_errors(uri: str) -> Iterator[None]:
    """Turn what a driver raises into one line; what the local disk refuses is told by `whole`."""
    try:
        yield
    except Exception as error:  # every driver has errors of its own; all of them mean: this store cannot be used
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # the disk here
            raise
        problem = f"cannot be used: {' '.join(str(error).split())[:200] or type(error).__name__}"
        raise UserError(uri, "", problem, "check the address, its credentials and the driver") from error


def digest(*texts: str) -> str:
    """SHA-256 over several texts: what a stage was made from."""
    sha = hashlib.sha256()
    for text in texts:
        sha.update(f"{len(text)}:{text}".encode())
    return sha.hexdigest()


class StageResult(BaseModel):
    """`<stage>/stage.json`: the mark that a stage is finished, with what it handed on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str
    """Digest of all inputs. A result with another fingerprint is refused, never overwritten."""
    outputs: dict[str, str | float | int]

    @classmethod
    def find(cls, store: RunStore, stage: str, fingerprint: str) -> "StageResult | None":
        """The finished stage, or None after leaving a note of the inputs that it is begun with.

        Raises UserError if it was finished or begun with other inputs, or cannot be read.
        """
        path, note = store.pull(f"{stage}/stage.json"), store.pull(f"{stage}/{INPUTS_FILE}")
        if not path.exists():
            if note.exists() and note.read_text(encoding="utf-8") != fingerprint:
                raise UserError(str(note), "", "this stage was begun with other inputs", "choose another --out")
            write_whole(note, fingerprint)
            store.push(f"{stage}/{INPUTS_FILE}")
            return None
        try:
            result = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(str(path), "", "unreadable", "remove the stage's folder to run it again") from error
        if result.fingerprint != fingerprint:
            raise UserError(
                str(path), "fingerprint", "this stage was finished with other inputs", "choose another --out"
            )
        return result

    def write(self, store: RunStore, stage: str) -> dict[str, str | float | int]:
        """Mark the stage as finished; returns the outputs."""
        write_whole(store.local / stage / "stage.json", self.model_dump_json(indent=1))
        store.push(f"{stage}/stage.json")
        return self.outputs

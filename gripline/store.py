"""Where a run's state lives: a folder on this machine, or a URI that fsspec understands (s3://…, gs://…).

Stages work on local files. With a local run directory these are the files themselves; with a remote one they are a
mirror, which goes when the process ends: `pull` downloads what is missing, `push` makes the store equal to it. Several
processes of one stage may each have a mirror; what is large (weights) is written by the process that has it.
"""

import atexit
import fcntl
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from gripline import stopping
from gripline.atomic import whole, write_whole
from gripline.errors import UserError
from gripline.object_store import ObjectStore, files_below

INPUTS_FILE = "inputs.sha256"
"""In a stage's folder: the fingerprint of what it was begun with."""
FETCHED_VARIABLE = "GRIPLINE_FETCHED"
"""Names a folder in which the processes of one machine share what they fetch; it is not tidied up."""


def is_local(uri: str) -> bool:
    """A plain path or a file:// URI."""
    return "://" not in uri or uri.startswith("file://")


def scratch_folder() -> Path:
    """A new folder that goes when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="gripline-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class RunStore:
    """One run directory. Every method raises UserError when a remote store cannot be used, and those that write raise
    SupersededError in an attempt that does not own the run any more."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._remote = None if is_local(uri) else ObjectStore(uri)
        self.local = local_path(self.uri) if self._remote is None else scratch_folder()

    def files(self, name: str) -> list[str]:
        """The files of a folder of the run, by their names in the run, without what is still being written."""
        if self._remote is not None:
            return sorted(self._remote.files(name))
        return sorted(f"{name}/{below}" for below, _ in files_below(self.local / name))

    def pull(self, name: str) -> Path:
        """The local path of a file or folder of the run; it may not exist. What is missing here is downloaded."""
        if self._remote is not None:
            self._remote.download(name, self.local / name)
        return self.local / name

    def push(self, name: str) -> None:
        """Make a file or folder visible to the other stages as it is here; what is gone here goes there too."""
        stopping.fence()
        if self._remote is not None:
            self._remote.upload(self.local / name, name)

    @contextmanager
    def new_folder(self, name: str) -> Iterator[tuple[Path, str]]:
        """A folder of the run to be written by several processes, which appears whole: (a path for this process, the
        URI below which another may write its part with `written`).

        The marks of completeness are for this process to write. Of a remote folder only its own part is left here.
        """
        stopping.fence()
        if self._remote is not None:
            self._remote.delete(self._remote.files(name))  # what an attempt left that died while it wrote
        with whole(self.local / name) as temporary:
            temporary.mkdir()
            yield temporary, str(temporary) if self._remote is None else f"{self.uri}/{name}"
            stopping.fence()
        if self._remote is not None:
            self._remote.upload(self.local / name, name, prune=False)

    def copy(self, source: str, target: str) -> None:
        """Make a folder of the run equal to another; in a remote store nothing of it passes this process."""
        stopping.fence()
        if self._remote is not None:
            self._remote.copy(source, target)
        else:
            with whole(self.local / target) as temporary:
                shutil.copytree(self.local / source, temporary)

    def keep_only(self, folder: str, names: Collection[str]) -> None:
        """Delete every other entry of a folder, here and in the store."""
        stopping.fence()
        for entry in (self.local / folder).glob("*"):
            if entry.name not in names:
                shutil.rmtree(entry, ignore_errors=True)
        if self._remote is not None:
            entries = {each: each.removeprefix(f"{folder}/").partition("/")[0] for each in self._remote.files(folder)}
            self._remote.delete(each for each, entry in entries.items() if entry not in names)


def fetch(uri: str) -> Path:
    """A local file or folder with what `uri` names. Raises UserError when there is nothing."""
    path = local_path(uri) if is_local(uri) else _fetched(uri)
    if not path.exists():
        raise UserError(uri, "", "does not exist", "give the path or URI of a checkpoint directory")
    return path


@functools.cache
def _fetched(uri: str) -> Path:
    """Once in a process, or once on a machine: stages name a checkpoint several times, and none ever changes."""
    shared = os.environ.get(FETCHED_VARIABLE)
    if not shared:
        path = scratch_folder() / "fetched"
        ObjectStore(uri).download("", path)
        return path
    path = Path(shared) / digest(uri)[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # who comes later finds it there
        ObjectStore(uri).download("", path)
    return path


@contextmanager
def read_once(uri: str) -> Iterator[Path]:
    """A local path with a file or folder, for as long as the block runs. Raises UserError when there is nothing."""
    if is_local(uri):
        yield fetch(uri)
        return
    with tempfile.TemporaryDirectory(prefix="gripline-") as folder:
        path = Path(folder) / "read"
        ObjectStore(uri).download("", path)
        if not path.exists():
            raise UserError(uri, "", "does not exist", "see what the run's folder holds")
        yield path


@contextmanager
def written(uri: str) -> Iterator[Path]:
    """A local path for the body to make a file or folder at; after it, that is at `uri`."""
    if is_local(uri):
        yield local_path(uri)
        return
    folder_uri, _, name = uri.rstrip("/").rpartition("/")
    with tempfile.TemporaryDirectory(prefix="gripline-") as folder:
        yield Path(folder) / name
        ObjectStore(folder_uri).upload(Path(folder) / name, name)


def local_path(uri: str) -> Path:
    """Of a URI that `is_local` calls local."""
    return Path(uri.removeprefix("file://"))


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

"""The files by which the launcher of a RayJob and the driver inside it speak: `{run_dir}/jobs/{job}/`.

All are small JSON objects, written whole, of which a reader sees the former or the new one. Nothing is cached. The
launcher writes `in/*`, then `request.json`, and `heartbeat.json` again and again; each attempt of the driver writes
`attempt.json`, and at its end `out/*`, then `result.json`, or one of `error.json` and `abandoned.json`. The newest
attempt owns the run: any other stops itself.
"""

import hashlib
import shutil
import uuid
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

from pydantic import ConfigDict, Field, JsonValue, ValidationError

from gripline.atomic import disk_errors, whole, write_whole
from gripline.errors import UserError
from gripline.object_store import ObjectStore
from gripline.rollout.shares import Shares
from gripline.section import Section
from gripline.store import digest, is_local, local_path

Name = Annotated[str, Field(pattern=r"^(in|out)/[A-Za-z0-9_.-]+$")]
"""Of a file or folder beside the entries."""


class Entry(Section):
    """One of the files."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")
    file: ClassVar[str]


class Request(Entry):
    """What is to be run, by the launcher. Whoever can write this decides what runs in the head pod."""

    file: ClassVar[str] = "request.json"
    launch: str
    """The launcher's id."""
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """Such as components.rl.train:run."""
    arguments: dict[str, str] = Field(default_factory=dict)
    files: dict[str, Name] = Field(default_factory=dict)
    """Arguments that are paths of files or folders to read, with their names here, such as in/splits_path."""
    outputs: dict[str, Name] = Field(default_factory=dict)
    """Arguments that are paths to be written, such as out/results_path."""
    heartbeat_every_s: float = Field(gt=0)
    orphan_after_s: float = Field(gt=0)
    shares: Shares = Shares()
    tags: dict[str, str] = Field(default_factory=dict)
    """For the stage's MLflow run: what the launcher knows, such as the pipeline's run."""


class Heartbeat(Entry):
    """The launcher lives. Only that it changes matters, not what time it says."""

    file: ClassVar[str] = "heartbeat.json"
    launcher: str
    count: int
    time_s: float
    rayjob: str = ""
    rayjob_uid: str = ""
    """Empty before the RayJob exists."""


class Attempt(Entry):
    """The newest attempt, by the driver at its start."""

    file: ClassVar[str] = "attempt.json"
    attempt: str
    time_s: float


class Result(Entry):
    """The stage ended well: the driver's last word."""

    file: ClassVar[str] = "result.json"
    attempt: str
    outputs: dict[str, JsonValue]
    """What the stage's function returned."""
    files: dict[Name, str] = Field(default_factory=dict)
    """`content_hash` of each output, by its name here."""


class Refusal(Entry):
    """The stage raised UserError: another attempt would raise it again."""

    file: ClassVar[str] = "error.json"
    attempt: str
    where: str
    field: str
    problem: str
    next_step: str

    @property
    def error(self) -> UserError:
        """What the stage raised."""
        return UserError(self.where, self.field, self.problem, self.next_step)


class Abandoned(Entry):
    """The driver ended because it had no launcher any more."""

    file: ClassVar[str] = "abandoned.json"
    attempt: str
    reason: str
    time_s: float


Kind = TypeVar("Kind", bound=Entry)


class _Folder(Protocol):
    def read(self, name: str) -> bytes | None: ...
    def write(self, name: str, content: bytes) -> None: ...
    def delete(self, names: list[str]) -> None: ...
    def upload(self, local: Path, name: str) -> None: ...
    def download(self, name: str, local: Path) -> None: ...


class JobFiles:
    """The files of one job. Every method raises UserError where the store cannot be used, `StoreOutageError` where it
    does not answer for `patience_s` (None: some minutes)."""

    def __init__(self, run_dir: str, job: str, *, patience_s: float | None = None) -> None:
        self.uri = f"{run_dir.rstrip('/')}/jobs/{job}"
        self._folder: _Folder = ObjectStore(self.uri, patience_s=patience_s)
        if is_local(run_dir):
            self._folder = _LocalFolder(local_path(self.uri))

    def read(self, kind: type[Kind]) -> Kind | None:
        """The entry of this kind; None if there is none."""
        content = self._folder.read(kind.file)
        if content is None:
            return None
        try:
            return kind.model_validate_json(content)
        except ValidationError as error:
            problem = f"cannot be read: {error.errors()[0]['msg']}"
            next_step = "launcher and driver must be of one version: see the images of the profile"
            raise UserError(f"{self.uri}/{kind.file}", "", problem, next_step) from error

    def write(self, entry: Entry) -> None:
        """Write an entry over the former one."""
        self._folder.write(entry.file, entry.model_dump_json(indent=1).encode())

    def remove(self, *kinds: type[Entry]) -> None:
        """Remove what there is of these."""
        self._folder.delete([kind.file for kind in kinds])

    def upload(self, local: Path, name: str) -> None:
        """Bring a file or folder under a name such as in/splits_path. Raises UserError if there is none."""
        if not local.exists():
            raise UserError(str(local), "", "does not exist", "this file was to be handed on")
        self._folder.upload(local, name)

    def download(self, name: str, local: Path) -> Path:
        """Fetch a file or folder to `local`, a free path, and return that. Raises UserError if there is none."""
        self._folder.download(name, local)
        if not local.exists():
            raise UserError(f"{self.uri}/{name}", "", "is missing", "start the launcher again")
        return local


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and hashes of all files of a folder; in hex."""
    if path.is_file():
        with path.open("rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()
    files = sorted(each for each in path.rglob("*") if each.is_file())
    return digest(*(text for each in files for text in (each.relative_to(path).as_posix(), content_hash(each))))


class _LocalFolder:
    """The same as `ObjectStore`, on a disk that launcher and driver share."""

    def __init__(self, folder: Path) -> None:
        self._path = folder

    def read(self, name: str) -> bytes | None:
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            problem, next_step = f"cannot be read: {error.strerror}", "mend its permissions, or the mount"
            raise UserError(str(self._path / name), "", problem, next_step) from error

    def write(self, name: str, content: bytes) -> None:
        # Two launchers may write at the same time, so each has a temporary file of its own.
        target, mine = self._path / name, self._path / f"{name}.{uuid.uuid4().hex}"
        write_whole(mine, content.decode())
        mine.replace(target)

    def delete(self, names: list[str]) -> None:
        for name in names:
            with disk_errors(self._path / name):
                (self._path / name).unlink(missing_ok=True)

    def upload(self, local: Path, name: str) -> None:
        _copy(local, self._path / name)

    def download(self, name: str, local: Path) -> None:
        if (self._path / name).exists():
            _copy(self._path / name, local)


def _copy(source: Path, target: Path) -> None:
    copy: Any = shutil.copytree if source.is_dir() else shutil.copyfile
    with whole(target) as temporary:
        copy(source, temporary)

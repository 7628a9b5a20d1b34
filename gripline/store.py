"""Where a run's state lives: a folder on this machine, or a URI that fsspec understands (s3://…, gs://…).

Stages work on local files. With a local run directory these are the files themselves; with a remote one they are a
mirror, and `push` uploads what a stage finished, the file that marks completeness last.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from gripline.errors import UserError

LAST_FILES = ("manifest.json", "stage.json", "state.json")


def is_local(uri: str) -> bool:
    """A plain path or a file:// URI."""
    return "://" not in uri or uri.startswith("file://")


class RunStore:
    """One run directory."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._remote = not is_local(uri)
        self.local = (
            Path(tempfile.mkdtemp(prefix="gripline-")) if self._remote else Path(self.uri.removeprefix("file://"))
        )

    def pull(self, name: str) -> Path:
        """The local path of a file or folder of the run; it may not exist. Remote ones are downloaded."""
        target = self.local / name
        if self._remote and not target.exists():
            _download(f"{self.uri}/{name}", target)
        return target

    def push(self, name: str) -> None:
        """Make a finished local file or folder visible to the other stages."""
        if not self._remote:
            return
        source = self.local / name
        files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
        files.sort(key=lambda path: path.name in LAST_FILES)
        import fsspec

        filesystem, _ = fsspec.core.url_to_fs(self.uri)
        for path in files:
            destination = f"{self.uri}/{path.relative_to(self.local)}"
            filesystem.makedirs(destination.rsplit("/", 1)[0], exist_ok=True)
            filesystem.put_file(str(path), destination)


def fetch(uri: str) -> Path:
    """A local folder with what `uri` names. Raises UserError when there is nothing."""
    if is_local(uri):
        path = Path(uri.removeprefix("file://"))
    else:
        path = Path(tempfile.mkdtemp(prefix="gripline-")) / "fetched"
        _download(uri, path)
    if not path.exists():
        raise UserError(uri, "", "does not exist", "give the path or URI of a checkpoint directory")
    return path


def _download(uri: str, target: Path) -> None:
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(uri)
    if not filesystem.exists(path):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    filesystem.get(path, str(partial), recursive=True)
    partial.rename(target)


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
        """The finished stage, or None. Raises UserError if it was made from other inputs or cannot be read."""
        path = store.pull(f"{stage}/stage.json")
        if not path.exists():
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
        path = store.local / stage / "stage.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        temporary.write_text(self.model_dump_json(indent=1), encoding="utf-8")
        os.replace(temporary, path)
        store.push(f"{stage}/stage.json")
        return self.outputs

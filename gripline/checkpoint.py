"""The contract between stages: a self-contained checkpoint directory and its `manifest.json`.

This module knows files, hashes and the manifest, and imports no torch, so that a configuration with a bad checkpoint is
answered at once. What is inside of the other files (weights, architecture, tokenizer, statistics) is the business of
`gripline.policies.storage`.
"""

import hashlib
import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from gripline.atomic import whole
from gripline.config import EnvConfig
from gripline.errors import UserError
from gripline.store import fetch, is_local

if TYPE_CHECKING:
    from gripline.types import EnvSpec  # imports NumPy, which the launcher of a RayJob goes without

MANIFEST_FILE = "manifest.json"
TOKEN_HEAD = "token"
"""Name in `heads_trained` of the head that answers action tokens; RL cannot start without it."""


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Contract(_Value):
    """What the policy was trained to see and to do."""

    suite: str
    cameras: tuple[str, ...]
    image_size_px: int
    proprio_dim: int
    """0: the policy does not read proprioception, and fits any."""
    action_dim: int
    action_low_A: tuple[float, ...]
    action_high_A: tuple[float, ...]
    num_actions: int
    """Actions in a chunk."""
    hold_steps: int | None = None
    """Control steps for which each action is held; None before the first checkpoint."""
    num_bins: int


class Provenance(_Value):
    """Where a checkpoint comes from."""

    stage: str
    """'sft', 'rl' or 'import'."""
    parent: str | None = None
    """`checkpoint_hash` of the checkpoint that training started from; None for fresh weights."""
    data_hash: str = ""
    """Content hash of the demonstrations."""
    split_hashes: dict[str, str] = Field(default_factory=dict)
    seen_states: dict[str, str] = Field(default_factory=dict)
    """Initial states seen in training, its parents' included: `gripline.seen_states`. Empty: not known."""
    config: dict[str, JsonValue] = Field(default_factory=dict)
    """The configuration of the stage, as in the profile."""
    code_version: str = Field(default_factory=lambda: importlib.metadata.version("gripline"))
    mlflow_run_id: str = ""


class Manifest(_Value):
    """`manifest.json`: written last, names every other file by its SHA-256."""

    format_version: Literal[1] = 1
    policy: str
    """Name of the architecture: 'tiny', '7b'."""
    contract: Contract
    heads_trained: tuple[str, ...]
    provenance: Provenance
    files: dict[str, str] = Field(default_factory=dict)
    """Path relative to the directory -> SHA-256 in hex."""


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def checkpoint_hash(directory: Path) -> str:
    """The checkpoint's name for lineage: the SHA-256 of its manifest, which names all other files by theirs."""
    if not (directory / MANIFEST_FILE).is_file():
        raise _missing_manifest(directory)
    return file_hash(directory / MANIFEST_FILE)


@contextmanager
def new_checkpoint(directory: Path, manifest: Manifest) -> Iterator[Path]:
    """A folder to write a checkpoint's files into; on leaving, the manifest is added and all of it appears at once.

    Raises UserError where `directory` exists already and where the disk is full or not writable; then nothing is left.
    """
    if directory.exists():
        raise UserError(str(directory), "", "exists already", "choose another directory or remove this one")
    with whole(directory) as temporary:
        temporary.mkdir()
        yield temporary
        hashes = {path.relative_to(temporary).as_posix(): file_hash(path) for path in _files(temporary)}
        text = manifest.model_copy(update={"files": hashes}).model_dump_json(indent=1)
        (temporary / MANIFEST_FILE).write_text(text, encoding="utf-8")


def read_manifest(directory: Path) -> Manifest:
    """The manifest, after every file it names was found and hashed. Raises UserError on what is missing or differs."""
    path = directory / MANIFEST_FILE
    if not directory.is_dir():
        raise UserError(str(directory), "", "no such checkpoint directory", "check the path")
    if not path.is_file():
        raise _missing_manifest(directory)
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(str(path), field, first["msg"], "use a checkpoint as gripline wrote it") from None
    for name, expected in manifest.files.items():
        if not (directory / name).is_file():
            raise UserError(str(directory / name), "files", "is missing", "copy the checkpoint directory again, whole")
        if file_hash(directory / name) != expected:
            raise UserError(
                str(directory / name), "files", "differs from its hash in manifest.json: torn or edited",
                "copy the checkpoint directory again, whole",
            )  # fmt: skip
    return manifest


def manifest_at(uri: str) -> Manifest:
    """The manifest of the checkpoint at a path or URI. Raises UserError.

    Of one in a remote store only the manifest is read: whoever loads the weights checks the rest.
    """
    if is_local(uri):
        return read_manifest(fetch(uri))
    try:
        return Manifest.model_validate_json(_remote_manifest(uri).read_bytes())
    except ValidationError as error:
        problem = f"is not a manifest: {error.errors()[0]['msg']}"
        raise UserError(f"{uri}/{MANIFEST_FILE}", "", problem, "use a checkpoint as gripline wrote it") from error


def hash_at(uri: str) -> str:
    """The `checkpoint_hash` of the checkpoint at a path or URI. Raises UserError where there is none."""
    return checkpoint_hash(fetch(uri)) if is_local(uri) else file_hash(_remote_manifest(uri))


def check_fits(manifest: Manifest, env_spec: "EnvSpec", env: EnvConfig, *, where: str) -> None:
    """Raises UserError with the first reason why the checkpoint cannot act in this environment, if there is one.

    where: how the user named the checkpoint.
    """
    contract = manifest.contract
    pairs: list[tuple[str, object, object]] = [
        ("suite", contract.suite, env_spec.suite),
        ("cameras", contract.cameras, env_spec.cameras),
        ("image_size_px", contract.image_size_px, env_spec.image_size_px),
        ("action_dim", contract.action_dim, env_spec.action_dim),
        ("action_low_A", contract.action_low_A, env_spec.action_low_A),
        ("action_high_A", contract.action_high_A, env_spec.action_high_A),
        ("hold_steps", contract.hold_steps, env.hold_steps),
    ]
    if contract.proprio_dim:
        pairs.append(("proprio_dim", contract.proprio_dim, env_spec.proprio_dim))
    for field, ours, theirs in pairs:
        if ours != theirs:
            problem = f"the checkpoint was made for {_shown(ours)}, the environment has {_shown(theirs)}"
            raise UserError(where, f"contract.{field}", problem, "use a checkpoint made for this environment")
    if TOKEN_HEAD not in manifest.heads_trained:
        trained = ", ".join(manifest.heads_trained) or "none"
        raise UserError(
            where, "heads_trained", f"the action-token head was never trained (trained: {trained})",
            "use a checkpoint fine-tuned with the token head",
        )  # fmt: skip


def _shown(value: object) -> str:
    return ", ".join(str(part) for part in value) if isinstance(value, tuple) else str(value)


def _remote_manifest(uri: str) -> Path:
    return fetch(f"{uri.rstrip('/')}/{MANIFEST_FILE}")


def _missing_manifest(directory: Path) -> UserError:
    return UserError(str(directory), MANIFEST_FILE, "is missing", "name a checkpoint directory that gripline wrote")


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())

"""What an interrupted RL run continues from: a folder per checkpoint, complete or absent."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from gripline.errors import UserError


class RlState(BaseModel):
    """Everything but the tensors, which lie beside it in `learner.pt`."""

    model_config = ConfigDict(extra="forbid")

    fingerprint: str
    """Hash of the configuration and of the policy that RL started from: state of another run is refused."""
    iteration: int = 0
    """Next iteration to run."""
    drawn: dict[str, int]
    """Groups drawn so far, per task."""
    env_steps: int = 0
    seconds: float = 0.0
    starving: int = 0
    """Iterations in a row without one mixed group."""
    best_success: float = -1.0
    best_iteration: int = -1


def latest(folder: Path) -> Path | None:
    """The newest complete state folder, or None. Half-written ones never carry the final name."""
    found = sorted(path.parent for path in folder.glob("iteration-*/state.json"))
    return found[-1] if found else None


def write(folder: Path, state: RlState, save_tensors: Callable[[str], None], *, keep: int) -> Path:
    """Write a state folder under a temporary name, rename it, drop all but the newest `keep`."""
    final = folder / f"iteration-{state.iteration:06d}"
    partial = folder / f".partial-{state.iteration:06d}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_tensors(str(partial / "learner.pt"))
        (partial / "state.json").write_text(state.model_dump_json(indent=1), encoding="utf-8")
        for name in ("learner.pt", "state.json"):
            with open(partial / name, "rb") as written:
                os.fsync(written.fileno())
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            str(final), "", f"cannot be written: {error}", "free space and start the same run again"
        ) from error
    for old in sorted(folder.glob("iteration-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def read(path: Path, fingerprint: str) -> RlState:
    """Read and check a state folder. Raises UserError if it is damaged or belongs to another configuration."""
    try:
        state = RlState.model_validate_json((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            str(path / "state.json"), "", f"unreadable: {first}", "remove this folder to resume earlier"
        ) from error
    if state.fingerprint != fingerprint:
        raise UserError(str(path), "fingerprint", "belongs to another configuration or policy", "choose another --out")
    return state

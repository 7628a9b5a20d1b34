"""What an interrupted RL run continues from: a folder per checkpoint, complete or absent.

The learner writes its part, weights and optimizer, where it runs; the driver adds the rest, and `state.json` last.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.rl.guard import Memory
from gripline.errors import UserError
from gripline.types import Trajectory

STATE_FILE, GROUPS_FILE, LEARNER_FILE = "state.json", "groups.safetensors", "learner.pt"


@dataclass(frozen=True)
class ExperienceGroup:
    """A group to learn from. Its trajectories are references into Ray's object store and hold behaviour log-probs."""

    version: int
    """How many updates the policy that acted had seen."""
    trajectories: tuple[Any, ...]
    advantages: tuple[float, ...]


class RlState(BaseModel):
    """Everything but the tensors, which lie beside it."""

    model_config = ConfigDict(extra="forbid")

    fingerprint: str
    """Hash of the configuration and of the policy that RL started from: state of another run is refused."""
    iteration: int = 0
    """Next iteration to run."""
    version: int = 0
    """Updates that the acting policy has seen."""
    drawn: dict[str, int]
    """Groups drawn so far, per task."""
    mixed_share: dict[str, float]
    """Share of each task's latest groups that had mixed outcomes; older rounds count half as much each."""
    env_steps: int = 0
    seconds: float = 0.0
    starving: int = 0
    """Iterations in a row without one group to learn from."""
    best_success: float = -1.0
    best_iteration: int = -1
    guard: Memory = Field(default_factory=Memory)


def complete(files: Iterable[str]) -> list[str]:
    """The folders among these files that hold a whole state, oldest first. Half-written ones have no `state.json`."""
    return sorted(folder for folder, _, name in (each.rpartition("/") for each in files) if name == STATE_FILE)


def write(folder: Path, state: RlState) -> None:
    """Write the mark that a state folder is complete."""
    (folder / STATE_FILE).write_text(state.model_dump_json(indent=1), encoding="utf-8")


def read(path: Path, fingerprint: str) -> RlState:
    """Read and check a state folder. Raises UserError if it is damaged or belongs to another configuration."""
    try:
        state = RlState.model_validate_json((path / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            str(path / STATE_FILE), "", f"unreadable: {first}", "remove this folder to resume earlier"
        ) from error
    if state.fingerprint != fingerprint:
        raise UserError(str(path), "fingerprint", "belongs to another configuration or policy", "choose another --out")
    return state


def write_groups(folder: Path, groups: Iterable[ExperienceGroup], resolve: Callable[[Any], Trajectory]) -> None:
    """Write the groups that are kept for later iterations. resolve: from a reference to its trajectory."""
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray] = {}
    facts: list[dict[str, Any]] = []
    for number, group in enumerate(groups):
        episodes = [resolve(reference) for reference in group.trajectories]
        for member, episode in enumerate(episodes):
            arrays = {name: getattr(episode, name) for name in _ARRAYS}
            tensors |= {f"{number}/{member}/{name}": np.ascontiguousarray(value) for name, value in arrays.items()}
        instructions = [episode.instruction for episode in episodes]
        facts.append({"version": group.version, "advantages": group.advantages, "instructions": instructions})
    save_file(tensors, folder / GROUPS_FILE, metadata={"groups": json.dumps(facts)})


def read_groups(folder: Path, keep: Callable[[Trajectory], Any]) -> list[ExperienceGroup]:
    """The inverse of `write_groups`. keep: makes a reference to a trajectory. Raises UserError on a damaged file."""
    from safetensors import SafetensorError, safe_open

    path = folder / GROUPS_FILE
    try:
        with safe_open(path, framework="numpy") as stored:
            facts = json.loads(stored.metadata()["groups"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  not a mapping
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(str(path), "", f"unreadable: {error}", "remove this folder to resume earlier") from error
    groups = []
    for number, fact in enumerate(facts):
        episodes = [
            Trajectory(instruction, **{name: tensors[f"{number}/{member}/{name}"] for name in _ARRAYS})
            for member, instruction in enumerate(fact["instructions"])
        ]
        references = tuple(keep(episode) for episode in episodes)
        groups.append(ExperienceGroup(fact["version"], references, tuple(fact["advantages"])))
    return groups


_ARRAYS = tuple(field.name for field in fields(Trajectory) if field.name != "instruction")

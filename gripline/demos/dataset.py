"""A demonstration set in one safetensors file.

Shape letters: F frames (every view of a frame is a frame of its own), N H W C, P, K, A as in gripline.types.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from gripline.atomic import whole
from gripline.errors import UserError

FILE_NAME = "demos.safetensors"
_ARRAYS = ("images_FNHWC", "proprio_FP", "actions_FKA", "instruction_F", "episode_F")


@dataclass(frozen=True)
class DemoSet:
    """Frames of successful demonstrations."""

    images_FNHWC: np.ndarray
    proprio_FP: np.ndarray
    actions_FKA: np.ndarray
    """In the environment's units."""
    instruction_F: np.ndarray
    """Index into `instructions`."""
    episode_F: np.ndarray
    """Which demonstration a frame belongs to; negative numbers are held out from training."""
    instructions: tuple[str, ...]
    facts: dict[str, str | int | float]
    """Where it came from: number of demonstrations, failed attempts, seconds."""
    seen_states: dict[str, str] = field(default_factory=dict)
    """The initial states shown, held-out ones included: `gripline.seen_states`."""

    def __len__(self) -> int:
        return len(self.images_FNHWC)

    @property
    def texts(self) -> list[str]:
        """The instruction of every frame."""
        return [self.instructions[index] for index in self.instruction_F]

    @property
    def content_hash(self) -> str:
        """SHA-256 of the frames and their texts; not of when and how fast they were recorded."""
        sha = hashlib.sha256(json.dumps(self.instructions).encode())
        for name in _ARRAYS:
            sha.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return sha.hexdigest()

    def save(self, folder: Path) -> None:
        """Write `demos.safetensors`, whole or not at all. Raises UserError when the disk does not take it."""
        texts = {"instructions": self.instructions, "facts": self.facts, "seen_states": self.seen_states}
        metadata = {name: json.dumps(value) for name, value in texts.items()}
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        with whole(folder / FILE_NAME) as temporary:
            save_file(arrays, temporary, metadata=metadata)

    @classmethod
    def load(cls, folder: Path) -> "DemoSet":
        """Read a set. Raises UserError when it is missing, damaged or inconsistent."""
        path = folder / FILE_NAME
        next_step = "collect the demonstrations again"
        try:
            arrays = load_file(path)
            metadata = _metadata(path)
            demos = cls(
                **{name: arrays[name] for name in _ARRAYS},
                instructions=tuple(json.loads(metadata["instructions"])),
                facts=json.loads(metadata["facts"]),
                seen_states=json.loads(metadata["seen_states"]) if "seen_states" in metadata else {},
            )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(str(path), "", f"not a readable demonstration set: {reason}", next_step) from error
        lengths = {name: len(arrays[name]) for name in _ARRAYS}
        if len(set(lengths.values())) != 1 or not len(demos):
            raise UserError(str(path), "", f"arrays of different or no length: {lengths}", next_step)
        return demos

    def split(self, held_out: np.ndarray) -> tuple["DemoSet", "DemoSet"]:
        """(train, held out) by demonstration; `held_out` lists values of `episode_F`."""
        mask_F = np.isin(self.episode_F, held_out)
        return self._where(~mask_F), self._where(mask_F)

    def _where(self, mask_F: np.ndarray) -> "DemoSet":
        return replace(self, **{name: getattr(self, name)[mask_F] for name in _ARRAYS})


def _metadata(path: Path) -> dict[str, str]:
    """The header's free text; safetensors offers it only through its lazy reader."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})

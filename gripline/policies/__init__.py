"""Policies: one architecture with named parts, its tokenizer, its statistics, and how it acts, adapts and is stored.

Importing this package imports no torch; its functions do, when they are called.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gripline.checkpoint import Provenance
from gripline.config import EnvConfig, PolicyConfig
from gripline.policies.actions import ActionStatistics
from gripline.types import EnvSpec

if TYPE_CHECKING:
    from gripline.policies.vla import VLA

__all__ = ["ActionStatistics", "build_policy", "load_policy", "save_policy"]


def build_policy(config: PolicyConfig, env_spec: EnvSpec, *, instructions: Sequence[str], seed: int) -> "VLA":
    """A fresh policy for an environment; its weights depend on `seed` alone and the global generators are left alone.

    instructions: the texts of the training tasks; they make the vocabulary.
    Raises UserError for preset '7b', which starts from a checkpoint.
    """
    from gripline.policies.storage import fresh_policy

    return fresh_policy(config, env_spec, instructions=instructions, seed=seed)


def load_policy(directory: str | os.PathLike[str], *, device: str = "cpu") -> "VLA":
    """The policy of a checkpoint directory. Raises UserError where the directory is missing, torn or edited."""
    from gripline.policies.storage import read_policy

    return read_policy(Path(directory), device=device)


def save_policy(
    directory: str | os.PathLike[str], vla: "VLA", *, env: EnvConfig | None = None, **provenance: Any
) -> str:
    """Write a new checkpoint directory, all or nothing; returns its `checkpoint_hash`.

    env: the environment trained in; None keeps what the policy's own checkpoint said.
    provenance: the fields of `gripline.checkpoint.Provenance`; `stage` is required.
    Raises UserError where the directory exists or cannot be written, for example because the disk is full.
    """
    from gripline.policies.storage import write_policy

    return write_policy(Path(directory), vla, Provenance(**provenance), env)

"""Makes a checkpoint directory of ours from a published OpenVLA-OFT one (discrete token head)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gripline.checkpoint import Contract, Provenance
from gripline.errors import UserError

if TYPE_CHECKING:
    from gripline.policies.architecture import Architecture


@dataclass(frozen=True)
class Purpose:
    """What the published files do not say: which data's statistics to act with, and in which environment."""

    dataset: str
    """Such as 'libero_10'; its statistics turn tokens into actions."""
    suite: str
    """The environment's name; its actions are taken to lie in [-1, 1], as LIBERO's do."""
    cameras: Sequence[str]
    """In the order in which training saw them."""
    bounds: Literal["q01_q99", "min_max"] = "q01_q99"
    use_proprio: bool = False
    num_actions: int = 8
    hold_steps: int = 1
    dtype: Literal["bfloat16", "float32"] = "bfloat16"


def import_openvla(source: Path, out: Path, purpose: Purpose, architecture: "Architecture | None" = None) -> str:
    """Write checkpoint `out`, all or nothing; returns its hash.

    architecture: None reads it from the files, with towers as in the published models. Raises UserError for files that
    are missing, torn, or of another shape or head, and for an `out` that exists or cannot be written.
    """
    if out.exists():
        raise UserError(str(out), "--out", "exists already", "choose another directory or remove this one")
    if not (source / "config.json").is_file():
        raise UserError(str(source), "config.json", "is missing", "name the directory of an OpenVLA-OFT checkpoint")
    import torch

    from gripline.policies.openvla import load_openvla, read_architecture, read_dimensions
    from gripline.policies.storage import write_policy

    action_dim, proprio_dim = read_dimensions(source, purpose.dataset)
    if architecture is None:
        architecture = read_architecture(
            source,
            num_cameras=len(purpose.cameras),
            proprio_dim=proprio_dim if purpose.use_proprio else 0,
            num_actions=purpose.num_actions,
            action_dim=action_dim,
        )
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[purpose.dtype]
    vla = load_openvla(source, architecture, dataset=purpose.dataset, bounds=purpose.bounds, dtype=dtype)
    vla.contract = Contract(
        suite=purpose.suite,
        cameras=tuple(purpose.cameras),
        image_size_px=architecture.image_size_px,
        proprio_dim=architecture.proprio_dim,
        action_dim=action_dim,
        action_low_A=(-1.0,) * action_dim,
        action_high_A=(1.0,) * action_dim,
        num_actions=architecture.num_actions,
        hold_steps=purpose.hold_steps,
        num_bins=architecture.num_bins,
    )
    origin = {"source": source.resolve().name, "dataset": purpose.dataset, "bounds": purpose.bounds}
    return write_policy(out, vla, Provenance(stage="import", config=dict(origin)), None)

"""Which episodes an evaluation runs: the listed ones when it decodes greedily, draws of them when it samples."""

from collections.abc import Sequence

from gripline.config import EvalConfig
from gripline.store import digest
from gripline.types import EpisodeSpec


def draws(specs: Sequence[EpisodeSpec], config: EvalConfig) -> list[EpisodeSpec]:
    """`config.samples` episodes from each listed one, in its place; `member` counts them. Greedy: the list as it is.

    The noise depends on the initial state and the number of the draw alone, so that two policies, or an episode and its
    ablation, meet the same noise, and pair by their keys.
    """
    if config.decoding == "greedy":
        return list(specs)
    return [
        spec.model_copy(update={"member": member, "noise_seed": _noise_seed(spec, member)})
        for spec in specs
        for member in range(config.samples)
    ]


def _noise_seed(spec: EpisodeSpec, member: int) -> int:
    """48 bits: a JSON number that every reader keeps exactly."""
    return int(digest("evaluation", *map(str, spec.init_state_key), str(member))[:12], 16)

"""Which initial states a checkpoint has seen in training, kept in its manifest, so that it is never tested on them.

A task's init seeds are packed as little-endian 32-bit numbers, ascending, in base64: 5 kB for a thousand of them. Only
states inside of the training region are kept, because nothing else is ever trained on.
"""

import base64
import struct
from collections.abc import Iterable

from gripline.checkpoint import Manifest
from gripline.errors import UserError
from gripline.types import EpisodeSpec

SeenStates = dict[str, str]
"""Task -> its packed init seeds."""


def seen_in(specs: Iterable[EpisodeSpec]) -> SeenStates:
    """The states of these episodes."""
    seeds: dict[str, set[int]] = {}
    for spec in specs:
        if spec.region == "inside":
            seeds.setdefault(spec.task, set()).add(spec.init_seed)
    return {task: packed(own) for task, own in seeds.items()}


def united(first: SeenStates, second: SeenStates) -> SeenStates:
    """What either saw."""
    tasks = dict.fromkeys([*first, *second])
    return {task: packed(unpacked(first.get(task, "")) | unpacked(second.get(task, ""))) for task in tasks}


def check_unseen(manifest: Manifest, tested: Iterable[EpisodeSpec], *, where: str) -> bool:
    """Whether the checkpoint says what it has seen. Raises UserError if that is tested: a state, or an 'unseen' task.

    where: how the user named the checkpoint.
    """
    said = manifest.provenance.seen_states
    try:
        seen = {task: unpacked(text) for task, text in said.items()}
    except (ValueError, struct.error) as error:
        problem = f"is damaged: {error}"
        raise UserError(where, "provenance.seen_states", problem, "use a checkpoint as gripline wrote it") from error
    for spec in tested:
        own = seen.get(spec.task)
        if own is None:
            continue
        if spec.axis == "unseen_task":
            problem = f"it was trained on task {spec.task!r}, which this run tests as unseen"
            raise UserError(where, "provenance.seen_states", problem, "choose other splits.ood.unseen_tasks")
        if spec.region == "inside" and spec.init_seed in own:
            state = f"{spec.task} init seed {spec.init_seed}"
            problem = f"it was trained on {state}, which this run tests (list {spec.split!r}, axis {spec.axis!r})"
            raise UserError(where, "provenance.seen_states", problem, "choose another splits.seed")
    return bool(said)


def packed(seeds: Iterable[int]) -> str:
    """Init seeds as text."""
    ordered = sorted(seeds)
    return base64.b64encode(struct.pack(f"<{len(ordered)}I", *ordered)).decode()


def unpacked(text: str) -> frozenset[int]:
    """The init seeds in a text of `packed`. Raises ValueError or struct.error where it is none."""
    raw = base64.b64decode(text, validate=True)
    return frozenset(struct.unpack(f"<{len(raw) // 4}I", raw))

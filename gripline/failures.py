"""Why an episode failed, told from what was seen on the simulator's state, and how failures and conduct are counted.

Each suite watches its own state (`gripline/envs/*/observer.py`) and sums an episode up as `Seen`; what that means is
decided here, with the suite's `Thresholds`, so that a type means the same everywhere.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gripline.types import Conduct, EpisodeRecord

FAILURES = (
    "collision",
    "limit_violation",
    "never_approached",
    "dropped",
    "moved_away",
    "not_moved",
    "time_limit",
)
"""Every type, in the order in which they are looked for: an episode has the first one that applies."""
MEANINGS = {
    "collision": "the robot pushed hard against something that is not the task's object",
    "limit_violation": "a joint was beyond its limit",
    "never_approached": "the hand never came near the object",
    "dropped": "the object was lifted and fell",
    "moved_away": "at the end the object was farther from its goal than it had been",
    "not_moved": "the hand came near the object and did not move it",
    "time_limit": "nothing went wrong, but the goal was not reached in time",
}
"""What a type means, for people."""
MORE_IS_BETTER = frozenset({"joint_margin"})
"""Conduct of which more is better; of all else less is."""
STEPS_TO_SUCCESS = "steps_to_success"
"""Conduct that needs no simulator state: mean control steps of the successes."""


@dataclass(frozen=True)
class Thresholds:
    """Where a suite draws the lines. Lengths in its own unit: metres, except in a toy world."""

    near: float
    """The hand has approached when it was within this distance of the object."""
    moved: float
    """The object was moved when it was displaced by more than this."""
    lifted: float
    """The object was lifted when it was higher than at the start by more than this; to fall by as much is a drop."""
    retreat: float
    """The object moved away when it ended farther from the goal than it had been by more than this."""
    collision_n: float = math.inf
    """A contact with anything but the task's object is a collision above this force."""
    joint_margin: float = 0.0
    """A joint is beyond its limit when its margin, as a share of its range, is below this."""


@dataclass(frozen=True)
class Seen:
    """An episode in a few numbers. None: the suite, or the task, has no such thing.

    Example (a puck that was reached, and pushed by 4 cm): `Seen(nearest_hand=0.02, moved=0.04, closest_to_goal=0.11,
    final_to_goal=0.11)`.
    """

    nearest_hand: float
    """Smallest distance between the hand and the object."""
    closest_to_goal: float
    """Smallest distance of the object to its goal, the start included; of the hand where the task has no object."""
    final_to_goal: float
    moved: float | None = None
    """Largest displacement of the object; None where a task has no object but its goal."""
    lifted: float = 0.0
    """Largest height of the object above its start."""
    fell: float = 0.0
    """From its largest height to its height at the end."""
    collision_n: float | None = None
    """Largest force between the robot and anything that is neither it nor the task's object."""
    joint_margin: float | None = None


def classify(seen: Seen, limits: Thresholds) -> str:
    """The type of an episode that did not succeed: one of `FAILURES`.

    Violations come first, because a real robot's protective stop would have ended the episode there.
    """
    applies = {
        "collision": seen.collision_n is not None and seen.collision_n > limits.collision_n,
        "limit_violation": seen.joint_margin is not None and seen.joint_margin < limits.joint_margin,
        "never_approached": seen.nearest_hand > limits.near,
        "dropped": seen.lifted > limits.lifted and seen.fell > limits.lifted,
        "moved_away": seen.final_to_goal - seen.closest_to_goal > limits.retreat,
        "not_moved": seen.moved is not None and seen.moved <= limits.moved,
        "time_limit": True,
    }
    return next(name for name in FAILURES if applies[name])


def count_failures(records: Sequence[EpisodeRecord]) -> dict[str, int]:
    """Episodes of each type that occurred, in the order of `FAILURES`. Those without a type are not counted."""
    counts = Counter(record.failure for record in records)
    return {name: counts[name] for name in FAILURES if counts[name]}


def mean_conduct(records: Sequence[EpisodeRecord]) -> dict[str, float]:
    """Means over the episodes in which a quantity was measured, and the mean steps to success."""
    return {name: math.fsum(values) / len(values) for name, values in conduct_values(records).items()}


def conduct_values(records: Sequence[EpisodeRecord]) -> dict[str, list[float]]:
    """What was measured of each quantity, in the order of the records; quantities without a value are left out."""
    values: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.conduct or ():
            if value is not None:
                values.setdefault(name, []).append(value)
    values[STEPS_TO_SUCCESS] = [float(record.num_steps) for record in records if record.success]
    known = (*Conduct.model_fields, STEPS_TO_SUCCESS)
    return {name: values[name] for name in known if values.get(name)}

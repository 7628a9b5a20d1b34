"""When a task is solved: how far one point of the object may be from the target.

The same points, offsets and thresholds as the stock environments' `evaluate_state`, without the reward around it. A
test compares the two, step for step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Axis = Literal["x", "y", "z", "all"]


@dataclass(frozen=True)
class Goal:
    """The object's point, and how near the target it must be."""

    kind: Literal["site", "body", "geom", "fingers"]
    """What the point belongs to; 'fingers' is the middle between the two finger tips."""
    name: str
    radius_m: float
    axis: Axis = "all"
    """Along one axis, or as the distance in space."""
    offset_m: tuple[float, float, float] = (0.0, 0.0, 0.0)


GOALS: dict[str, Goal] = {
    "faucet-open-v3": Goal("site", "handleStartOpen", 0.07, offset_m=(-0.04, 0.0, 0.02)),
    "faucet-close-v3": Goal("site", "handleStartClose", 0.07, offset_m=(0.0, 0.0, -0.01)),
    "drawer-open-v3": Goal("body", "drawer_link", 0.03, offset_m=(0.0, -0.16, 0.0)),
    "drawer-close-v3": Goal("body", "drawer_link", 0.065, offset_m=(0.0, -0.16, 0.05)),
    "button-press-topdown-v3": Goal("body", "button", 0.024, "z", offset_m=(0.0, 0.0, 0.193)),
    "window-open-v3": Goal("site", "handleOpenStart", 0.05, "x"),
    "window-close-v3": Goal("site", "handleCloseStart", 0.05, "x"),
    "door-open-v3": Goal("geom", "handle", 0.08, "x"),
    "handle-press-v3": Goal("site", "handleStart", 0.02, "z"),
    "coffee-button-v3": Goal("site", "buttonStart", 0.02, "y"),
    "reach-v3": Goal("fingers", "", 0.05),
    "push-v3": Goal("body", "obj", 0.05),
    "pick-place-v3": Goal("body", "obj", 0.07),
}


def success_test(task: str, env: Any) -> Callable[[], bool]:
    """A function that tells whether the task is solved, from positions that are up to date.

    env: the stock environment; its target is read at every call because each reset moves it.
    """
    goal = GOALS[task]
    points = goal_points(goal, env.data)
    axis = "xyz".find(goal.axis)

    def solved() -> bool:
        target = env._target_pos
        gaps = [sum(p[i] for p in points) / len(points) + goal.offset_m[i] - target[i] for i in range(3)]
        distance_m = math.hypot(*gaps) if goal.axis == "all" else abs(gaps[axis])
        return bool(distance_m <= goal.radius_m)

    return solved


def goal_points(goal: Goal, data: Any) -> list[Any]:
    """Views into the simulator's memory: they always show the present positions."""
    if goal.kind == "fingers":
        return [data.site("rightEndEffector").xpos, data.site("leftEndEffector").xpos]
    if goal.kind == "site":
        return [data.site(goal.name).xpos]
    return [data.body(goal.name).xpos if goal.kind == "body" else data.geom(goal.name).xpos]

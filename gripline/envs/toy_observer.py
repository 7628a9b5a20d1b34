"""What the toy world's episodes looked like: the hand is the dot, the object the square that the task names."""

import numpy as np

from gripline.envs.motion import jerk_rms
from gripline.failures import Seen, Thresholds, classify
from gripline.types import Conduct, Outcome

LIMITS = Thresholds(near=0.3, moved=0.0, lifted=0.0, retreat=0.12)
"""A full step is 0.08 to each side and a touch 0.22 from the centre: near is one more step from touching, away is more
than one step back."""


def outcome(positions_SD: list[np.ndarray], goal_D: np.ndarray, *, success: bool, control_hz: float) -> Outcome:
    """positions_SD: of the dot, the start first. Squares do not move, and nothing in this world exerts a force."""
    path_SD = np.array(positions_SD)
    distances_S = np.linalg.norm(path_SD - goal_D, axis=1)
    nearest = float(distances_S.min())
    seen = Seen(nearest_hand=nearest, closest_to_goal=nearest, final_to_goal=float(distances_S[-1]))
    conduct = Conduct(jerk_rms_m_s3=jerk_rms(path_SD, control_hz))
    return Outcome("" if success else classify(seen, LIMITS), conduct)

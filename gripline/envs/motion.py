"""How smoothly something moved."""

import math

import numpy as np


def jerk_rms(positions_SD: np.ndarray, control_hz: float) -> float | None:
    """Root mean square of the jerk (length unit per s³) of a point that was looked at `control_hz` times a second.

    positions_SD: S positions in D dimensions. The jerk is the third difference; None for fewer than four positions.
    """
    path = positions_SD
    if len(path) < 4:
        return None
    jerks_SD = (path[3:] - 3 * path[2:-1] + 3 * path[1:-2] - path[:-3]) * control_hz**3
    rms = math.sqrt(float((jerks_SD**2).sum()) / len(jerks_SD))
    return rms if math.isfinite(rms) else None

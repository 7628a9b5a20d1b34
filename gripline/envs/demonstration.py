"""What the scripted expert leaves behind: pictures, proprioception and the actions to imitate."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Demonstration:
    """One expert episode, cut into T frames, each rendered under V looks.

    Example (one camera of 64 px, 2 looks, K=1, A=4): `images_TVNHWC` uint8 (45, 2, 1, 64, 64, 3), `proprio_TP` float32
    (45, 4), `actions_TKA` float32 (45, 1, 4).
    """

    images_TVNHWC: np.ndarray
    proprio_TP: np.ndarray
    actions_TKA: np.ndarray
    """In the environment's units: action k of frame t is the mean of what the expert did in the k-th hold after t."""
    success: bool
    num_steps: int
    """Control steps until success, or the horizon."""


def held_actions_TKA(expert_SA: np.ndarray, frames: list[int], num_actions: int, hold_steps: int) -> np.ndarray:
    """The chunk that imitates the expert from each frame on, for a policy that holds an action for several steps.

    expert_SA holds one action per control step. Action k of a frame is the mean over its k-th window of `hold_steps`
    steps; a window cut off by the episode's end is the mean of what is left, one wholly beyond it repeats the last.
    """
    chunks = np.empty((len(frames), num_actions, expert_SA.shape[1]), np.float32)
    for row, frame in enumerate(frames):
        for k in range(num_actions):
            window_SA = expert_SA[frame + k * hold_steps : frame + (k + 1) * hold_steps]
            chunks[row, k] = window_SA.mean(axis=0) if len(window_SA) else chunks[row, k - 1]
    return chunks

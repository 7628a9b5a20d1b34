"""What each OOD axis changes in an episode. All of it ends up in the spec, which alone reproduces the episode."""

import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np

from gripline.envs.suites import SuiteInfo, suite_info, task_info
from gripline.errors import UserError, did_you_mean
from gripline.splits_config import Axis, OodConfig
from gripline.types import Distractor, Perturbation

AXES: tuple[Axis, ...] = get_args(Axis)
Changes = dict[str, Any]
"""Fields of `EpisodeSpec`."""


def check_axes(suite: str, tasks: tuple[str, ...], ood: OodConfig) -> None:
    """Raises UserError for what this suite cannot do: an axis, a texture, an unseen task that it does not have."""
    info = suite_info(suite)
    for axis in ood.axes:
        if axis not in info.axes:
            problem = f"{axis!r} would change nothing in suite {suite!r}"
            raise UserError("splits", "ood.axes", problem, f"choose of: {', '.join(info.axes)}")
    for texture in ood.textures:
        if texture not in info.textures:
            problem = f"suite {suite!r} has no texture {texture!r}"
            raise UserError("splits", "ood.textures", problem, did_you_mean(texture, info.textures))
    unknown = next((task for task in ood.unseen_tasks if task not in info.tasks), None)
    if unknown is not None:
        problem, left = f"unknown task {unknown!r} of suite {suite!r}", set(info.tasks) - set(tasks)
        raise UserError("splits", "ood.unseen_tasks", problem, did_you_mean(unknown, left))


def draw_changes(axis: Axis, ood: OodConfig, suite: str, task: str, index: int, rng: np.random.Generator) -> Changes:
    """What the index-th episode of `task` on this axis changes; nothing for 'unseen_task', whose change is the task.

    Where there are several ways, such as textures, episodes take turns.
    """
    if axis == "unseen_task":
        return {}
    if axis == "position":
        return {"region": "outside"}
    if axis == "paraphrase":
        paraphrases = task_info(suite, task).paraphrases
        return {"instruction": paraphrases[index % len(paraphrases)]}
    return {"perturbation": Perturbation.model_validate(_DRAWN[axis](ood, suite_info(suite), index, rng))}


def _camera(ood: OodConfig, _suite: SuiteInfo, _index: int, rng: np.random.Generator) -> Changes:
    angle = rng.uniform(0, 2 * math.pi)
    right, up = round(ood.camera_m * math.cos(angle), 4), round(ood.camera_m * math.sin(angle), 4)
    return {"camera_offset_m": (right, up, 0.0)}


def _light(ood: OodConfig, _suite: SuiteInfo, _index: int, _rng: np.random.Generator) -> Changes:
    return {"light_gain": ood.light}


def _colour(ood: OodConfig, _suite: SuiteInfo, _index: int, _rng: np.random.Generator) -> Changes:
    return {"colour_gain": ood.colour}


def _fov(ood: OodConfig, _suite: SuiteInfo, index: int, _rng: np.random.Generator) -> Changes:
    return {"fov_offset_deg": ood.fov_deg if index % 2 == 0 else -ood.fov_deg}


def _robot(ood: OodConfig, suite: SuiteInfo, _index: int, rng: np.random.Generator) -> Changes:
    direction = suite.hand_directions[int(rng.integers(len(suite.hand_directions)))]
    length = math.hypot(*direction)
    return {"hand_offset_m": tuple(round(ood.robot_m * part / length, 4) for part in direction)}


def _texture(ood: OodConfig, suite: SuiteInfo, index: int, _rng: np.random.Generator) -> Changes:
    textures = ood.textures or suite.textures
    return {"texture": textures[index % len(textures)]}


def _distractors(ood: OodConfig, suite: SuiteInfo, _index: int, rng: np.random.Generator) -> Changes:
    """Each in a place of its own, so that none hides in another."""
    places = rng.choice(len(suite.distractor_places_m), size=ood.distractors, replace=False)
    colours = rng.permutation(len(_COLOURS))
    drawn = []
    for number, place in enumerate(places):
        x_m, y_m = suite.distractor_places_m[int(place)] + rng.uniform(-1, 1, 2) * suite.distractor_jitter_m
        drawn.append(
            Distractor(
                shape=_SHAPES[int(rng.integers(len(_SHAPES)))],
                centre_m=(round(float(x_m), 4), round(float(y_m), 4)),
                size_m=round(float(rng.uniform(*suite.distractor_size_m)), 4),
                rgb=_COLOURS[int(colours[number % len(_COLOURS)])],
            )
        )
    return {"distractors": tuple(drawn)}


def _physics(ood: OodConfig, _suite: SuiteInfo, _index: int, _rng: np.random.Generator) -> Changes:
    return {"friction_gain": ood.friction, "mass_gain": ood.mass}


_SHAPES: tuple[str, ...] = get_args(Distractor.model_fields["shape"].annotation)
_COLOURS = ((0.8, 0.1, 0.1), (0.1, 0.6, 0.1), (0.1, 0.2, 0.8), (0.8, 0.7, 0.1), (0.6, 0.1, 0.6), (0.1, 0.6, 0.6))
_DRAWN: dict[Axis, Callable[[OodConfig, SuiteInfo, int, np.random.Generator], Changes]] = {
    "camera": _camera,
    "light": _light,
    "colour": _colour,
    "fov": _fov,
    "robot": _robot,
    "texture": _texture,
    "distractors": _distractors,
    "physics": _physics,
}

"""The part of a profile that says what training varies, and which episodes are tested under which shifts."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gripline.section import Section

Range = Annotated[tuple[float, float], Field(description="low and high bound, low <= high")]
Axis = Literal[
    "position", "camera", "light", "colour", "paraphrase", "robot", "fov", "texture", "distractors", "physics",
    "unseen_task",
]  # fmt: skip
OOD_AXES: tuple[Axis, ...] = ("position", "camera", "light", "colour", "paraphrase")
"""What is tested unless the profile chooses."""


class VariationConfig(Section):
    """How demonstrations and training episodes vary what the camera sees. Each is drawn per initial state."""

    camera_m: float = Field(default=0.0, ge=0, le=0.3)
    """Largest camera shift along each axis of its frame; it keeps aiming at the scene."""
    light: Range = (1.0, 1.0)
    colour: Range = (1.0, 1.0)
    """Range of the gain on each colour channel."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("light", "colour"):
            low, high = self.light if name == "light" else self.colour
            if not 0 < low <= high:
                raise ValueError(f"{name}: low {low} and high {high} must satisfy 0 < low <= high")
        return self


class OodConfig(Section):
    """The shifts that out-of-distribution episodes are tested under, one axis at a time.

    Each lies outside of what training varies. How far 'position' goes is a matter of the task, and paraphrases come
    with it; every other axis has its strength here.
    """

    axes: tuple[Axis, ...] = OOD_AXES
    """Which axes are tested: position, camera, light, colour, paraphrase, robot, fov, texture, distractors, physics,
    unseen_task."""
    camera_m: float = Field(default=0.06, gt=0, le=0.5)
    light: float = Field(default=0.5, gt=0)
    colour: tuple[float, float, float] = (0.75, 1.0, 1.2)
    robot_m: float = Field(default=0.06, gt=0, le=0.2)
    """How far from its usual place the hand starts; the direction is drawn."""
    fov_deg: float = Field(default=8.0, gt=0, le=20)
    """Change of the camera's field of view; wider or narrower is drawn."""
    textures: tuple[str, ...] = ()
    """Surfaces that the table gets in turn; none: all of the suite's."""
    distractors: int = Field(default=3, ge=1, le=8)
    """Coloured things beside the task's objects."""
    friction: float = Field(default=0.4, gt=0, le=10)
    """Factor on friction and damping."""
    mass: float = Field(default=2.5, gt=0, le=10)
    """Factor on the objects' mass."""
    unseen_tasks: tuple[str, ...] = ()
    """Tasks of the suite that the run does not train, for axis 'unseen_task'."""

    @model_validator(mode="after")
    def _axes_are_meant(self) -> Self:
        for name, values in (("axes", self.axes), ("unseen_tasks", self.unseen_tasks)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: one is named twice")
        if ("unseen_task" in self.axes) != bool(self.unseen_tasks):
            raise ValueError("unseen_tasks must name tasks if, and only if, axes holds unseen_task")
        if "physics" in self.axes and self.friction == self.mass == 1:
            raise ValueError("friction and mass are both 1: axis physics would change nothing")
        return self

    def scaled(self, factor: float) -> "OodConfig":
        """The same with every strength `factor` times as large: distances are multiplied, gains taken to its power."""
        changes = {
            "camera_m": self.camera_m * factor,
            "robot_m": self.robot_m * factor,
            "fov_deg": self.fov_deg * factor,
            "distractors": max(1, round(self.distractors * factor)),
            "light": self.light**factor,
            "colour": tuple(gain**factor for gain in self.colour),
            "friction": self.friction**factor,
            "mass": self.mass**factor,
        }
        return self.model_copy(update=changes)


@dataclass(frozen=True)
class Shift:
    """One shift beside the range that training draws the same thing from."""

    axis: Axis
    field: str
    values: tuple[float, ...]
    covered_by: str
    low: float
    high: float

    @property
    def is_covered(self) -> bool:
        return all(self.low <= value <= self.high for value in self.values)

    @property
    def problem(self) -> str:
        shown = ", ".join(str(value) for value in self.values)
        return (
            f"splits.ood.{self.field} {shown} lies within {self.covered_by}, {self.low:.4g} to {self.high:.4g}: "
            "an OOD shift must lie outside of what training varies"
        )


def shifts(ood: OodConfig, variation: VariationConfig) -> Iterator[Shift]:
    """Those active shifts of which training varies the like. All others are fixed in training."""
    farthest_m = math.sqrt(2) * variation.camera_m  # training shifts fill a square, OOD shifts lie on a circle
    known = (
        Shift("camera", "camera_m", (ood.camera_m,), "variation.camera_m", 0.0, farthest_m),
        Shift("light", "light", (ood.light,), "variation.light", *variation.light),
        Shift("colour", "colour", ood.colour, "variation.colour", *variation.colour),
    )
    yield from (shift for shift in known if shift.axis in ood.axes)


class SplitsConfig(Section):
    """How many initial states each list holds, per task. Lists are content-hashed and never overlap."""

    seed: int = Field(default=0, ge=0)
    """Decides the test lists alone, so that runs with different training seeds are tested on the same episodes."""
    train_per_task: int = Field(default=1000, ge=1)
    val_per_task: int = Field(default=16, ge=1)
    iid_per_task: int = Field(default=40, ge=1)
    ood_per_task: int = Field(default=20, ge=1)
    """For each OOD axis; on axis unseen_task, for each task that it names."""
    ablation_per_task: int = Field(default=20, ge=1)
    """For each ablation; taken from the IID list, so that they compare pairwise. Not larger than iid_per_task."""
    ood: OodConfig = OodConfig()

    @model_validator(mode="after")
    def _ablations_are_iid_episodes(self) -> Self:
        if self.ablation_per_task > self.iid_per_task:
            raise ValueError(f"ablation_per_task {self.ablation_per_task} exceeds iid_per_task {self.iid_per_task}")
        return self

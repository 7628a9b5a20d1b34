"""One scene file: compiled once per process and shared by every simulator that uses it.

A compiled model takes 20 MB and 0.1 s, and a worker holds a simulator per task and slot. What differs between episodes
is small: where fixed objects stand, and how things look. A simulator therefore *claims* the scene before it uses it,
which writes its own placement and look into the shared model.
"""

import copy
import weakref
from typing import Any

import mujoco
import numpy as np

from gripline.envs.metaworld.rendering import FOVY_DEG, Canvas, Thing, aim_camera, hide_from_policy, policy_camera
from gripline.types import Perturbation

PEOPLE_CAMERA_M = np.array([1.15, -0.3, 1.05])
PEOPLE_AIM_M = np.array([-0.05, 0.42, 0.22])
Placement = tuple[np.ndarray, ...]
"""Positions and orientations of fixed bodies, and positions of sites."""
TABLE = "table_wood"
TEXTURES = {"metal": "wall_metal", "tiles": "basic_floor"}
"""The suite's name of a surface -> the material, of those that every scene file has."""
PHYSICS = (
    "geom_friction", "dof_damping", "dof_frictionloss", "body_mass", "body_inertia",
    "body_subtreemass", "body_invweight0", "dof_M0", "dof_invweight0", "actuator_acc0",
)  # fmt: skip
"""What a factor on friction or mass changes, and below it what MuJoCo derives from that."""


class Scene:
    """The model of one scene file, its looks, and the canvases it is drawn on."""

    def __init__(self, path: str) -> None:
        self.model: Any = mujoco.MjModel.from_xml_path(path)
        self.model.vis.global_.fovy = FOVY_DEG
        self.owner: object = None
        """Token of the simulator whose placement the model holds now."""
        hide_from_policy(self.model)
        self._placed = _placed(self.model)
        self.pristine: Placement = self.placement()
        self._lights = _with_copies(_lights(self.model))
        self._materials = _with_copies([self.model.mat_rgba])
        # A geom with a material shows its own colour only where that is not the default grey.
        default = np.array([0.5, 0.5, 0.5, 1.0], np.float32)
        self._own_colour = (self.model.geom_matid < 0) | (self.model.geom_rgba != default).any(axis=1)
        self._geom_rgba = self.model.geom_rgba.copy()
        self._geom_matid = self.model.geom_matid.copy()
        self._of_table = self._geom_matid == self.model.material(TABLE).id
        self._physics = {(1.0, 1.0): self._constants(self.model)}
        self._gains = (1.0, 1.0)
        self._things: list[Thing] = []
        self._shown = Perturbation()
        self._camera = policy_camera(Perturbation().camera_offset_m)
        self._people_camera = mujoco.MjvCamera()
        aim_camera(self._people_camera, PEOPLE_CAMERA_M, PEOPLE_AIM_M)
        self._canvases: dict[tuple[int, bool], Canvas] = {}

    def mark(self, site: str) -> None:
        """Show the marker of a target that nothing else shows."""
        self.model.site_group[self.model.site(site).id] = 0

    def placement(self) -> Placement:
        """A copy of where things stand."""
        return tuple(field.copy() for field in self._placed)

    def place(self, placement: Placement) -> None:
        """Put things where `placement` says."""
        for field, values in zip(self._placed, placement, strict=True):
            field[:] = values

    def show(self, perturbation: Perturbation) -> None:
        """Set what is seen. Always computed from the pristine values, so that nothing accumulates.

        OpenGL cuts light times colour off at 1 before the texture: where the scene is brightest, gains show less.
        """
        if perturbation == self._shown:
            return
        for field, pristine in self._lights:
            field[:] = pristine * perturbation.light_gain
        gain = np.array([*perturbation.colour_gain, 1.0], np.float32)
        for field, pristine in self._materials:
            field[:] = pristine * gain
        self.model.geom_rgba[:] = np.where(self._own_colour[:, None], self._geom_rgba * gain, self._geom_rgba)
        self.model.geom_matid[:] = self._geom_matid
        if perturbation.texture:
            self.model.geom_matid[self._of_table] = self.model.material(TEXTURES[perturbation.texture]).id
        self._things = [
            (thing, np.minimum(np.array([*thing.rgb, 1.0], np.float32) * gain, 1)) for thing in perturbation.distractors
        ]
        self._camera = policy_camera(perturbation.camera_offset_m)
        self._shown = perturbation

    def weigh(self, friction_gain: float, mass_gain: float) -> None:
        """Set friction, and the objects' mass. Exactly the pristine model where both factors are 1."""
        gains = (friction_gain, mass_gain)
        if gains == self._gains:
            return
        if gains not in self._physics:
            self._physics[gains] = self._changed_physics(*gains)
        for name, values in zip(PHYSICS, self._physics[gains], strict=True):
            getattr(self.model, name)[:] = values
        self._gains = gains

    def draw(self, data: Any, size_px: int) -> np.ndarray:
        """The policy's picture, uint8 (size, size, 3)."""
        self.model.vis.global_.fovy = FOVY_DEG + self._shown.fov_offset_deg
        return self._canvas(size_px, for_people=False).draw(self.model, data, self._camera, self._things)

    def draw_for_people(self, data: Any, size_px: int) -> np.ndarray:
        """The whole robot with shadows, uint8 (size, size, 3)."""
        self.model.vis.global_.fovy = FOVY_DEG
        return self._canvas(size_px, for_people=True).draw(self.model, data, self._people_camera, self._things)

    def _changed_physics(self, friction_gain: float, mass_gain: float) -> tuple[np.ndarray, ...]:
        """Worked out in a copy of the pristine model: MuJoCo derives further constants from a mass."""
        self.weigh(1.0, 1.0)
        changed = copy.copy(self.model)
        for field, values in zip(_placed(changed), self.pristine, strict=True):
            field[:] = values
        robot = self.model.body_rootid == self.model.body_rootid[self.model.body("hand").id]
        joints = ~robot[self.model.dof_bodyid]
        changed.geom_friction[:] *= friction_gain
        changed.dof_damping[joints] *= friction_gain
        changed.dof_frictionloss[joints] *= friction_gain
        changed.body_mass[~robot] *= mass_gain
        changed.body_inertia[~robot] *= mass_gain
        mujoco.mj_setConst(changed, mujoco.MjData(changed))
        return self._constants(changed)

    @staticmethod
    def _constants(model: Any) -> tuple[np.ndarray, ...]:
        return tuple(getattr(model, name).copy() for name in PHYSICS)

    def _canvas(self, size_px: int, *, for_people: bool) -> Canvas:
        key = (size_px, for_people)
        if key not in self._canvases:
            self._canvases[key] = Canvas(self.model, size_px, for_people=for_people)
        return self._canvases[key]


def _placed(model: Any) -> Placement:
    return (model.body_pos, model.body_quat, model.site_pos)


def _lights(model: Any) -> list[np.ndarray]:
    head = model.vis.headlight
    lamps = [model.light_ambient, model.light_diffuse, model.light_specular]
    return [*lamps, head.ambient, head.diffuse, head.specular]


def _with_copies(fields: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(field, field.copy()) for field in fields]


_scenes: weakref.WeakValueDictionary[str, Scene] = weakref.WeakValueDictionary()


def open_scene(path: str) -> Scene:
    """The process's one scene of this file; freed when its last simulator is."""
    scene = _scenes.get(path)
    if scene is None:
        scene = _scenes[path] = Scene(path)
    return scene

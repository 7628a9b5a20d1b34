"""One scene file: compiled once per process and shared by every simulator that uses it.

A compiled model takes 20 MB and 0.1 s, and a worker holds a simulator per task and slot. What differs between episodes
is small: where fixed objects stand, and how things look. A simulator therefore *claims* the scene before it uses it,
which writes its own placement and look into the shared model.
"""

import weakref
from typing import Any

import mujoco
import numpy as np

from gripline.envs.metaworld.rendering import FOVY_DEG, Canvas, aim_camera, hide_from_policy, policy_camera
from gripline.types import Perturbation

PEOPLE_CAMERA_M = np.array([1.15, -0.3, 1.05])
PEOPLE_AIM_M = np.array([-0.05, 0.42, 0.22])
Placement = tuple[np.ndarray, ...]
"""Positions and orientations of fixed bodies, and positions of sites."""


class Scene:
    """The model of one scene file, its looks, and the canvases it is drawn on."""

    def __init__(self, path: str) -> None:
        self.model: Any = mujoco.MjModel.from_xml_path(path)
        self.model.vis.global_.fovy = FOVY_DEG
        self.owner: object = None
        """Token of the simulator whose placement the model holds now."""
        hide_from_policy(self.model)
        self._placed = (self.model.body_pos, self.model.body_quat, self.model.site_pos)
        self.pristine: Placement = self.placement()
        self._lights = _with_copies(_lights(self.model))
        self._materials = _with_copies([self.model.mat_rgba])
        # A geom with a material shows its own colour only where that is not the default grey.
        default = np.array([0.5, 0.5, 0.5, 1.0], np.float32)
        self._own_colour = (self.model.geom_matid < 0) | (self.model.geom_rgba != default).any(axis=1)
        self._geom_rgba = self.model.geom_rgba.copy()
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
        """Set lights, colours and camera. Always computed from the pristine values, so that nothing accumulates.

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
        self._camera = policy_camera(perturbation.camera_offset_m)
        self._shown = perturbation

    def draw(self, data: Any, size_px: int) -> np.ndarray:
        """The policy's picture, uint8 (size, size, 3)."""
        return self._canvas(size_px, for_people=False).draw(self.model, data, self._camera)

    def draw_for_people(self, data: Any, size_px: int) -> np.ndarray:
        """The whole robot with shadows, uint8 (size, size, 3)."""
        return self._canvas(size_px, for_people=True).draw(self.model, data, self._people_camera)

    def _canvas(self, size_px: int, *, for_people: bool) -> Canvas:
        key = (size_px, for_people)
        if key not in self._canvases:
            self._canvases[key] = Canvas(self.model, size_px, for_people=for_people)
        return self._canvases[key]


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

"""Pictures of a Meta-World scene: a cheap one for the policy, a good-looking one for people.

Drawn as the suite does it, a picture of 64 pixels takes some 30 times longer in software: the time goes into a shadow
map, multisampling and 67,000 mesh faces of the arm. The policy's picture leaves these out: it shows the table, the
objects and the gripper's fingers and rail, not the arm's links, the gripper's base and the markers of the goal (which
would tell the task). People get everything but the markers.
"""

import atexit
import copy
import functools
import math
import weakref
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from gripline.types import Distractor

CAMERA_M = np.array([0.45, 0.1, 0.7])
AIM_M = np.array([0.0, 0.67, 0.14])
FOVY_DEG = 42.0
HIDDEN_GROUP = 5
"""Group of what the policy does not see; MuJoCo draws groups 0 to 2 unless asked for more."""
BASE_BODIES = ("controller_box", "pedestal_feet", "torso", "pedestal", "head", "screen", "right_arm_base_link")
LINK_BODIES = (*(f"right_l{number}" for number in range(7)), "right_l1_2", "right_hand")
MAX_GEOMS = 1000
Thing = tuple[Distractor, np.ndarray]
"""What to draw beside the model, and its colour and opacity, float32 (4,)."""
GEOM_OF_SHAPE = {
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "ball": mujoco.mjtGeom.mjGEOM_SPHERE,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
}


def hide_from_policy(model: Any) -> None:
    """Move the arm's visible geoms and all sites into the hidden group. Groups mean nothing to the physics."""
    model.site_group[:] = HIDDEN_GROUP
    for name in BASE_BODIES + LINK_BODIES:
        geoms = model.geom_bodyid == model.body(name).id
        model.geom_group[geoms & (model.geom_group <= 2)] = HIDDEN_GROUP


def camera_position(offset_m: tuple[float, float, float]) -> np.ndarray:
    """World position (3,) of the policy's camera after a shift (right, up, backwards) in its own frame."""
    back = (CAMERA_M - AIM_M) / np.linalg.norm(CAMERA_M - AIM_M)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    position: np.ndarray = CAMERA_M + np.array(offset_m) @ np.stack([right, np.cross(back, right), back])
    return position


def policy_camera(offset_m: tuple[float, float, float]) -> Any:
    """The policy's camera, shifted and aimed at the same point as before."""
    camera = mujoco.MjvCamera()
    aim_camera(camera, camera_position(offset_m), AIM_M)
    return camera


def aim_camera(camera: Any, position_m: np.ndarray, aim_m: np.ndarray) -> None:
    """Put a free camera at `position_m`, upright, looking at `aim_m`."""
    forward = aim_m - position_m
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = aim_m
    camera.distance = float(np.linalg.norm(forward))
    camera.azimuth = math.degrees(math.atan2(forward[1], forward[0]))
    camera.elevation = math.degrees(math.asin(forward[2] / camera.distance))


class Canvas:
    """One scene's meshes and textures in OpenGL, with a frame buffer of one size and quality."""

    def __init__(self, model: Any, size_px: int, *, for_people: bool) -> None:
        template = copy.copy(model)  # these settings are read once, when the context is made
        template.vis.quality.offsamples = 4 if for_people else 0
        template.vis.quality.shadowsize = 2048 if for_people else 1
        template.vis.global_.offwidth = template.vis.global_.offheight = size_px
        self._scene = mujoco.MjvScene(template, maxgeom=MAX_GEOMS)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = for_people
        self._option = mujoco.MjvOption()
        self._option.geomgroup[HIDDEN_GROUP] = for_people
        _gl_context().make_current()
        self._context = mujoco.MjrContext(template, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._viewport = mujoco.MjrRect(0, 0, size_px, size_px)
        self._shape_HWC = (size_px, size_px, 3)
        _canvases.add(self)

    def draw(self, model: Any, data: Any, camera: Any, things: Sequence[Thing]) -> np.ndarray:
        """An upright picture, uint8 (size, size, 3), of positions that are up to date.

        things: what is in the picture only, and not in the model.
        """
        _gl_context().make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        mujoco.mjv_updateScene(model, data, self._option, None, camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        for thing, rgba in things:
            self._add(thing, rgba)
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        picture_HWC = np.empty(self._shape_HWC, np.uint8)
        mujoco.mjr_readPixels(picture_HWC, None, self._viewport, self._context)
        return np.ascontiguousarray(picture_HWC[::-1])  # OpenGL's first row is the lowest

    def _add(self, thing: Distractor, rgba: np.ndarray) -> None:
        geom = self._scene.geoms[self._scene.ngeom]
        size_3, position_3 = np.full(3, thing.size_m), np.array([*thing.centre_m, thing.size_m])
        mujoco.mjv_initGeom(geom, GEOM_OF_SHAPE[thing.shape], size_3, position_3, np.eye(3).ravel(), rgba)
        self._scene.ngeom += 1

    def free(self) -> None:
        """Give back the memory in OpenGL; idempotent."""
        _gl_context().make_current()
        self._context.free()


_canvases: weakref.WeakSet[Canvas] = weakref.WeakSet()


@functools.cache
def _gl_context() -> Any:
    """The process's one OpenGL context: making one takes 0.3 s and more, and every canvas can live in it."""
    context = mujoco.GLContext(16, 16)
    atexit.register(_free_all, context)
    return context


def _free_all(context: Any) -> None:
    for canvas in list(_canvases):
        canvas.free()
    context.free()

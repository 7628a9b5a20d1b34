"""What a Meta-World episode looked like on the simulator's state: why it failed, and how the robot moved.

It only reads, and only after every `STRIDE`-th control step and at the end, when all else is computed; looking at each
step would cost twice as much. A knock in between may be missed, and jerk is that of 40 looks a second, not of 80.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from gripline.envs.metaworld.success import GOALS, Goal, goal_points
from gripline.envs.motion import jerk_rms
from gripline.failures import Seen, Thresholds, classify
from gripline.types import Conduct, Outcome

LIMITS = Thresholds(near=0.1, moved=0.01, lifted=0.03, retreat=0.02, collision_n=100.0)
STRIDE = 2
FINGERS = ("rightEndEffector", "leftEndEffector")
ROBOT, HAND = "base", "hand"
ELBOW, ELBOW_RANGE = "right_j1", (-3.8095, 2.2736)
"""Radians; the robot's own. The suite's model narrows it to keep the elbow up, and leans on that in every episode."""


class Observer:
    """Watches the episodes of one task, one after the other: `begin`, `note` after each control step, `outcome`."""

    def __init__(self, task: str, env: Any, control_hz: float) -> None:
        """env: the stock environment, whose target each reset moves; nothing in it is changed."""
        self._env, self._data, self._goal, self._control_hz = env, env.data, GOALS[task], control_hz
        model = env.model
        arm = [joint for joint in range(model.njnt) if model.joint(joint).name.startswith("right_j")]
        self._arm_q, self._arm_v = model.jnt_qposadr[arm], model.jnt_dofadr[arm]
        ranges = [ELBOW_RANGE if model.joint(joint).name == ELBOW else model.jnt_range[joint] for joint in arm]
        self._low_J, self._high_J = np.array(ranges).T
        root_G = model.body_rootid[model.geom_bodyid]
        robot_G = root_G == model.body(ROBOT).id
        object_G = root_G == model.body_rootid[_object_body(self._goal, model)]
        self._robot_G, self._object_G = robot_G.tolist(), object_G.tolist()  # read one by one: faster than an array
        sites = [self._data.site(name).xpos for name in FINGERS]
        hand = self._data.body(HAND).xpos
        self._views = [*goal_points(self._goal, self._data), *sites, hand, self._data.qpos, self._data.qvel]
        ends = np.cumsum([len(view) for view in self._views]).tolist()
        self._columns = [slice(end - len(view), end) for view, end in zip(self._views, ends, strict=True)]
        self.begin()

    def begin(self) -> None:
        """A new episode starts from the present state."""
        self._num_steps = 0
        self._states = [np.concatenate(self._views)]
        self._peak_n = self._peak_elsewhere_n = 0.0

    def note(self) -> None:
        """A control step was made, and everything in `data` is up to date."""
        self._num_steps += 1
        if not self._num_steps % STRIDE:
            self._look()

    def outcome(self, *, success: bool) -> Outcome:
        """What the episode was like that has ended in the present state."""
        num_even = len(self._states)
        if self._num_steps % STRIDE:
            self._look()
        states_S = np.array(self._states)
        *points, hand_S3, q_S, v_S = (states_S[:, columns] for columns in self._columns)
        angles_SJ = q_S[:, self._arm_q]
        margins_SJ = np.minimum(angles_SJ - self._low_J, self._high_J - angles_SJ) / (self._high_J - self._low_J)
        conduct = Conduct(
            joint_margin=float(margins_SJ.min()),
            peak_joint_speed_rad_s=float(np.abs(v_S[:, self._arm_v]).max()),
            peak_contact_force_n=self._peak_n,
            jerk_rms_m_s3=jerk_rms(hand_S3[:num_even], self._control_hz / STRIDE),
        )
        return Outcome("" if success else classify(self._seen(points, hand_S3, conduct), LIMITS), conduct)

    def _look(self) -> None:
        self._states.append(np.concatenate(self._views))
        if self._data.ncon:
            self._read_forces()

    def _read_forces(self) -> None:
        """Sum the normal forces of the robot's contacts: with everything, and with all but the task's object."""
        contacts, force, robot, task_object = self._data.contact, self._data.efc_force, self._robot_G, self._object_G
        total_n = elsewhere_n = 0.0
        for (one, other), row in zip(contacts.geom.tolist(), contacts.efc_address.tolist(), strict=True):
            if robot[one] == robot[other] or row < 0:  # row < 0: too far apart to push
                continue
            force_n = float(force[row])  # cones are elliptic here: the first row is the normal force
            total_n += force_n
            if not (task_object[one] or task_object[other]):
                elsewhere_n += force_n
        self._peak_n = max(self._peak_n, total_n)
        self._peak_elsewhere_n = max(self._peak_elsewhere_n, elsewhere_n)

    def _seen(self, points: list[np.ndarray], hand_S3: np.ndarray, conduct: Conduct) -> Seen:
        """points: the path (S, 3) of each point of the object, then of each finger. A palm can press a button too."""
        goal, num = self._goal, len(FINGERS)
        object_S3 = sum(points[:-num]) / (len(points) - num) + np.array(goal.offset_m)
        fingers_S3 = sum(points[-num:]) / num
        gaps_S3 = object_S3 - self._env._target_pos
        axes = [0, 1, 2] if goal.axis == "all" else ["xyz".index(goal.axis)]
        to_goal_S = np.linalg.norm(gaps_S3[:, axes], axis=1)
        closest = float(to_goal_S.min())
        seen = Seen(
            nearest_hand=closest,
            closest_to_goal=closest,
            final_to_goal=float(to_goal_S[-1]),
            collision_n=self._peak_elsewhere_n,
            joint_margin=conduct.joint_margin,
        )
        if goal.kind == "fingers":  # the hand itself is to reach the goal
            return seen
        heights_S = object_S3[:, 2] - object_S3[0, 2]
        return replace(
            seen,
            nearest_hand=min(float(np.linalg.norm(hand - object_S3, axis=1).min()) for hand in (fingers_S3, hand_S3)),
            moved=float(np.linalg.norm(object_S3 - object_S3[0], axis=1).max()),
            lifted=float(heights_S.max()),
            fell=float(heights_S.max() - heights_S[-1]),
        )


def _object_body(goal: Goal, model: Any) -> int:
    """The body that is to be moved; where the hand itself is, one that the robot never touches: the mocap's."""
    if goal.kind == "fingers":
        return int(model.body("mocap").id)
    if goal.kind == "site":
        return int(model.site_bodyid[model.site(goal.name).id])
    return int(model.body(goal.name).id if goal.kind == "body" else model.geom_bodyid[model.geom(goal.name).id])

"""One Meta-World task's physics: initial states, control steps, success and the scripted expert."""

import functools
import warnings
from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np
from gymnasium.spaces import Box
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP

from gripline.envs.metaworld.observer import Observer
from gripline.envs.metaworld.scene import Placement, Scene, open_scene
from gripline.envs.metaworld.success import success_test
from gripline.envs.suites import METAWORLD, TaskInfo
from gripline.types import Perturbation

PHYSICS_STEPS = 5
"""Physics steps of 2.5 ms in one control step."""
MAX_STARTS = 1024
"""Initial states remembered per process, of about 5 kB each."""
STATE = mujoco.mjtState.mjSTATE_INTEGRATION
"""Everything that the next physics step depends on, the solver's warm start included."""


@dataclass
class _Start:
    """An initial state: the sampler's vector, where it puts things, and all of it one step before the hand's start."""

    vector: np.ndarray
    placement: Placement
    hand_states: dict[tuple[float, float, float], np.ndarray] = field(default_factory=dict)
    """For each shift of the hand's start."""


_starts: dict[tuple[str, int, str], _Start] = {}
"""Shared by the process, oldest first: the members of a group and of an ablation start from the same state."""


@functools.cache
def _environment_class(task: str) -> Any:
    """The stock environment's class, except that its model is the process's shared one."""
    stock: Any = ALL_V3_ENVIRONMENTS[task]

    def initialize(self: Any) -> tuple[Any, Any]:
        self.scene = open_scene(self.fullpath)
        return self.scene.model, mujoco.MjData(self.scene.model)

    return type(stock.__name__, (stock,), {"_initialize_simulation": initialize})


class Simulator:
    """A stock environment of one task, with its reset and step driven from outside.

    lean: step physics and test success only. Not lean: the stock `step`, with rewards and observations nobody reads.
    """

    def __init__(self, task: str, info: TaskInfo, *, lean: bool) -> None:
        self.task = task
        self._info = info
        self._lean = lean
        self.env = _environment_class(task)()
        self.scene: Scene = self.env.scene
        self.data = self.env.data
        if info.marker:
            self.scene.mark(info.marker)
        self._prepare_env()
        self._expert = ENV_POLICY_MAP[task]()
        self._solved = success_test(task, self.env)
        self.observer = Observer(task, self.env, METAWORLD.control_hz)
        self._mocap_3 = self.data.mocap_pos[0]
        self._placement = self.scene.pristine
        self._perturbation = Perturbation()
        self._hand_start = self.env.hand_init_pos
        self._start: _Start | None = None
        self._claimant = object()
        self._stock_reset_hand = self.env._reset_hand
        self.env._reset_hand = self._reset_hand

    def _prepare_env(self) -> None:
        env = self.env
        env._set_task_called = True
        env._partially_observable = False  # the expert may read the goal; the policy never does
        env.__dict__.pop("sawyer_observation_space", None)  # cached before that was known
        env.max_path_length = 2**62  # the horizon is the adapter's

    def close(self) -> None:
        """Undo the circular reference, so that memory is freed at once and not when the collector comes round."""
        self.env.__dict__.pop("_reset_hand", None)

    def claim(self) -> None:
        """Make the shared scene this episode's, before anything else is done with it."""
        if self.scene.owner is not self._claimant:
            self.scene.place(self._placement)
            self.scene.owner = self._claimant
        self.scene.show(self._perturbation)
        self.scene.weigh(self._perturbation.friction_gain, self._perturbation.mass_gain)

    def reset(self, init_seed: int, region: str, perturbation: Perturbation) -> None:
        """Put the task into the initial state that its own sampler draws for this seed, whatever happened before.

        Without a perturbation of the hand, the state is the one that the stock `reset()` makes of the same vector, to
        the bit. Other friction and masses hold from then on: they do not change where things start.
        """
        env, model = self.env, self.scene.model
        self.scene.owner = None
        self.scene.weigh(1.0, 1.0)
        self._perturbation = perturbation
        self._start = self._drawn_start(init_seed, region)
        self.scene.place(self._start.placement)
        self.scene.owner = self._claimant
        self.scene.show(perturbation)
        if any(perturbation.hand_offset_m):
            env.hand_init_pos = self._hand_start + np.array(perturbation.hand_offset_m)
        env._last_rand_vec, env._freeze_rand_vec = self._start.vector, True
        env.curr_path_length = 0
        mujoco.mj_resetData(model, self.data)
        env.reset_model()
        env.hand_init_pos = self._hand_start
        self._placement = self.scene.placement()
        self.scene.weigh(perturbation.friction_gain, perturbation.mass_gain)
        self.refresh()  # else objects are drawn where they stood before the reset
        env._prev_obs = env._get_curr_obs_combined_no_goal()
        self.observer.begin()

    def _drawn_start(self, init_seed: int, region: str) -> _Start:
        key = (self.task, init_seed, region)
        if key not in _starts:
            if len(_starts) >= MAX_STARTS:
                _starts.pop(next(iter(_starts)))
            _starts[key] = self._draw_start(init_seed, region)
        return _starts[key]

    def _draw_start(self, init_seed: int, region: str) -> _Start:
        """Let the sampler draw. The vector is frozen afterwards only: one that the task rejects would loop for ever."""
        env = self.env
        self.scene.place(self.scene.pristine)
        self._start = None
        rng = np.random.default_rng(init_seed)
        boxes = (self._info.inside,) if region == "inside" else self._info.outside
        low, high = boxes[int(rng.integers(len(boxes)))]
        env._random_reset_space = Box(np.array(low), np.array(high), dtype=np.float64)
        env.np_random, env.seeded_rand_vec, env._freeze_rand_vec = rng, True, False
        mujoco.mj_resetData(self.scene.model, self.data)
        env.reset_model()
        return _Start(env._last_rand_vec, self.scene.placement())

    def _reset_hand(self, steps: int = 50) -> None:
        """The stock 50 steps to the hand's start; from the second time on that a state is used, the last one only.

        The last step is always simulated, because tasks read what it leaves behind.
        """
        if self._start is None:
            self._stock_reset_hand(1)  # while a vector is drawn, the hand does not matter
            return
        offset, known = self._perturbation.hand_offset_m, self._start.hand_states
        if offset not in known:
            self._stock_reset_hand(steps - 1)
            known[offset] = self.save()
        else:
            mujoco.mj_setState(self.scene.model, self.data, known[offset], STATE)
        self._stock_reset_hand(1)

    def save(self) -> np.ndarray:
        """The physics state, exactly."""
        state = np.empty(mujoco.mj_stateSize(self.scene.model, STATE))
        mujoco.mj_getState(self.scene.model, self.data, state, STATE)
        return state

    def restore(self, state: np.ndarray) -> None:
        """Go back to a saved physics state of this episode."""
        mujoco.mj_setState(self.scene.model, self.data, state, STATE)
        self.refresh()

    def refresh(self) -> None:
        """Bring what is derived from the state up to date. The solver's warm start stays: it is part of the state."""
        warm_start = self.data.qacc_warmstart.copy()
        mujoco.mj_forward(self.scene.model, self.data)
        self.data.qacc_warmstart[:] = warm_start

    def step(self, action_A: np.ndarray) -> bool:
        """One control step with an action within bounds, float32 (4,); true on success. Needs `claim` before."""
        if not self._lean:
            return bool(self.env.step(action_A)[4]["success"])
        env, data, model = self.env, self.data, self.scene.model
        # The stock arithmetic to the bit: a float32 product added to a float64 position.
        np.clip(self._mocap_3 + action_A[:3] * env.action_scale, env.mocap_low, env.mocap_high, out=self._mocap_3)
        data.mocap_quat[0] = (1.0, 0.0, 1.0, 0.0)
        data.ctrl[:] = (action_A[3], -action_A[3])
        mujoco.mj_step(model, data, nstep=PHYSICS_STEPS)
        mujoco.mj_forward(model, data)  # updates positions, and the solver's warm start: without it, states drift apart
        return self._solved()

    def proprio_P(self) -> np.ndarray:
        """Hand position (m) and gripper opening 0…1, float32 (4,)."""
        return np.asarray(self.env._get_curr_obs_combined_no_goal()[:4], np.float32)

    def expert_action_A(self) -> np.ndarray:
        """The scripted expert's action for the present state, within bounds, float32 (4,)."""
        now = self.env._get_curr_obs_combined_no_goal()
        space = self.env.sawyer_observation_space
        obs = np.clip(np.hstack((now, now, self.env._get_pos_goal())), space.low, space.high)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that actions get clipped, which is what happens here
            wanted_A = self._expert.get_action(obs)
        action_A: np.ndarray = np.clip(wanted_A, -1.0, 1.0).astype(np.float32)
        return action_A

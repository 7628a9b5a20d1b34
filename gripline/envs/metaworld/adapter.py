"""Meta-World as an `Env`: text instructions, one camera, actions held over several control steps."""

import importlib.util
from typing import TYPE_CHECKING

import numpy as np

from gripline.config import EnvConfig
from gripline.envs.demonstration import Demonstration, held_actions_TKA
from gripline.envs.gl import choose_renderer
from gripline.envs.suites import env_spec, task_info
from gripline.errors import UserError
from gripline.types import EpisodeSpec, Observation, Perturbation, Step

if TYPE_CHECKING:
    from gripline.envs.metaworld.simulator import Simulator


class MetaWorldEnv:
    """Runs any task of the suite, one episode at a time; pictures come from one camera (N = 1)."""

    def __init__(self, config: EnvConfig) -> None:
        self.spec = env_spec(config)
        self._config = config
        for package in ("mujoco", "gymnasium", "metaworld"):
            if importlib.util.find_spec(package) is None:
                problem = f"suite 'metaworld' needs the package {package!r}"
                raise UserError("env", "suite", problem, "run: pip install 'gripline[sim]'")
        choose_renderer(config.renderer)
        from gripline.envs.metaworld import simulator  # imports MuJoCo: not before a renderer is chosen

        self._new_simulator = simulator.Simulator
        self._simulators: dict[str, Simulator] = {}
        self._simulator: Simulator | None = None
        self._low_A = np.array(self.spec.action_low_A, np.float32)
        self._high_A = np.array(self.spec.action_high_A, np.float32)
        self._episode: EpisodeSpec | None = None
        self._observation: Observation | None = None
        self._num_steps = 0

    def reset(self, spec: EpisodeSpec) -> Observation:
        """Start the episode that `spec` names, of any task of the suite. Raises UserError for an unknown one."""
        self._simulator = self._simulator_of(spec)
        self._simulator.reset(spec.init_seed, spec.region, spec.perturbation)
        self._episode, self._num_steps = spec, 0
        self._observation = self._observe(spec)
        return self._observation

    def step(self, actions_KA: np.ndarray) -> Step:
        """Run a chunk, each action held for `hold_steps` control steps; stops at success and at the horizon.

        No picture is taken when the episode ends, because no policy will look at it: `observation` then is the one
        before the chunk. Raises RuntimeError when no episode is running.
        """
        if self._episode is None or self._observation is None:
            raise RuntimeError("no episode is running: call reset() first")
        before = self._num_steps
        self._started().claim()
        success = self._run(np.clip(np.asarray(actions_KA, np.float32), self._low_A, self._high_A))
        truncated = not success and self._num_steps >= self._config.horizon_steps
        outcome = None
        if success or truncated:
            self._episode = None
            outcome = self._started().observer.outcome(success=success)
        else:
            self._observation = self._observe(self._episode)
        return Step(self._observation, success, truncated, self._num_steps - before, outcome)

    def expert_chunk_KA(self, num_actions: int) -> np.ndarray:
        """What the scripted expert would do from here, K held actions; float32 (K, A).

        The expert is run ahead at full control rate and then taken back, so that the episode goes on as before.
        """
        simulator = self._started()
        simulator.claim()
        here = simulator.save()
        actions: list[np.ndarray] = []
        success = False
        while not success and len(actions) < num_actions * self._config.hold_steps:
            actions.append(simulator.expert_action_A())
            success = simulator.step(actions[-1])
        simulator.restore(here)
        chunk_KA: np.ndarray = held_actions_TKA(np.stack(actions), [0], num_actions, self._config.hold_steps)[0]
        return chunk_KA

    def expert_rollout(
        self, spec: EpisodeSpec, *, num_actions: int, frame_stride: int, views: list[Perturbation]
    ) -> Demonstration:
        """Run the expert at full control rate from the initial state of `spec`, until success or the horizon.

        Every `frame_stride`-th control step is kept, and drawn once for each of `views`, all of the same state; the
        spec's own perturbation is not used. Raises UserError for an unknown task. Afterwards no episode is running.
        """
        simulator = self._simulator = self._simulator_of(spec)
        simulator.reset(spec.init_seed, spec.region, Perturbation())
        self._episode = None
        frames: list[int] = []
        pictures: list[np.ndarray] = []
        proprio: list[np.ndarray] = []
        actions: list[np.ndarray] = []
        success = False
        while not success and len(actions) < self._config.horizon_steps:
            action_A = simulator.expert_action_A()
            if len(actions) % frame_stride == 0:
                frames.append(len(actions))
                pictures.append(np.stack([self._draw(simulator, view)[None] for view in views]))
                proprio.append(simulator.proprio_P())
            actions.append(action_A)
            success = simulator.step(action_A)
        return Demonstration(
            images_TVNHWC=np.stack(pictures),
            proprio_TP=np.stack(proprio),
            actions_TKA=held_actions_TKA(np.stack(actions), frames, num_actions, self._config.hold_steps),
            success=success,
            num_steps=len(actions),
        )

    def render_for_people(self, size_px: int) -> np.ndarray:
        """The whole robot from a normal camera, in the episode's light and colours; uint8 (size, size, 3).

        Also after the episode's end. The episode goes on as if no picture had been taken.
        """
        simulator = self._started()
        simulator.claim()
        return simulator.scene.draw_for_people(simulator.data, size_px)

    def close(self) -> None:
        """Free the simulators, and the OpenGL memory of scenes that nobody else uses; idempotent."""
        for simulator in self._simulators.values():
            simulator.close()
        self._simulators.clear()
        self._simulator = None
        self._episode = None

    def _simulator_of(self, spec: EpisodeSpec) -> "Simulator":
        if spec.task not in self._simulators:
            info = task_info(self._config.suite, spec.task)
            self._simulators[spec.task] = self._new_simulator(spec.task, info, lean=self._config.lean)
        return self._simulators[spec.task]

    def _started(self) -> "Simulator":
        if self._simulator is None:
            raise RuntimeError("no episode was started: call reset() first")
        return self._simulator

    def _run(self, actions_KA: np.ndarray) -> bool:
        simulator = self._started()
        for action_A in actions_KA:
            for _ in range(min(self._config.hold_steps, self._config.horizon_steps - self._num_steps)):
                self._num_steps += 1
                solved = simulator.step(action_A)
                simulator.observer.note()
                if solved:
                    return True
        return False

    def _observe(self, spec: EpisodeSpec) -> Observation:
        simulator = self._started()
        picture_HWC = self._draw(simulator, spec.perturbation)
        return Observation(picture_HWC[None], simulator.proprio_P(), spec.instruction)

    def _draw(self, simulator: "Simulator", look: Perturbation) -> np.ndarray:
        size_px = self._config.image_size_px
        if look.blank_image:
            return np.zeros((size_px, size_px, 3), np.uint8)
        simulator.scene.show(look)
        return simulator.scene.draw(simulator.data, size_px)

"""A two-dimensional world without a simulator: a dot, a red and a blue square, and a text that says what to touch.

It obeys the same contract as every other environment, costs microseconds, and is what the tests of rollouts, learning
and evaluation run on. Its tasks share one scene, so that only the text tells them apart.
"""

import numpy as np

from gripline.config import EnvConfig
from gripline.envs import toy_observer
from gripline.envs.demonstration import Demonstration
from gripline.envs.suites import env_spec, task_info
from gripline.errors import UserError
from gripline.types import EpisodeSpec, Observation, Perturbation, Step

SPEED = 0.08
"""World units per control step at full action; the world is the square [-1, 1]²."""
TOUCH = 0.22
HAND_SCALE = 5.0
"""World units that the dot's start moves for each metre of a hand's."""
FOV_DEG = 42.0
"""What a change of the field of view refers to."""


class ToyEnv:
    """See the module's docstring. Action dimensions: right, up. Proprioception: the dot's position."""

    def __init__(self, config: EnvConfig) -> None:
        self._config = config
        self.spec = env_spec(config)
        self._target = np.zeros((2, 2))
        self._dot = np.zeros(2)
        self._path: list[np.ndarray] = []
        self._episode: EpisodeSpec | None = None
        self._num_steps = 0
        self._running = False

    def reset(self, spec: EpisodeSpec) -> Observation:
        """Draw both squares and the dot from the spec's seed; 'outside' places the squares in a band further out."""
        info = task_info("toy", spec.task)
        rng = np.random.default_rng(spec.init_seed)
        (low,), (high,) = info.inside if spec.region == "inside" else info.outside[0]
        sides = np.array([-1.0, 1.0]) if rng.random() < 0.5 else np.array([1.0, -1.0])
        self._target = np.stack([sides * rng.uniform(low, high, 2), rng.uniform(-0.6, 0.6, 2)], axis=1)
        offset = HAND_SCALE * np.array(spec.perturbation.hand_offset_m[:2])
        self._dot = np.clip(rng.uniform(-0.1, 0.1, 2) + offset, -1, 1)
        self._path = [self._dot]
        self._episode, self._num_steps, self._running = spec, 0, True
        return self._observe()

    def step(self, actions_KA: np.ndarray) -> Step:
        """Hold each action for `hold_steps` control steps; stop at success and at the horizon."""
        if not self._running:
            raise RuntimeError("step after the end of an episode: call reset first")
        executed, success, truncated = 0, False, False
        for action_A in np.repeat(np.clip(actions_KA, -1, 1), self._config.hold_steps, axis=0):
            self._dot = np.clip(self._dot + SPEED * action_A.astype(np.float64), -1, 1)
            self._path.append(self._dot)
            executed += 1
            self._num_steps += 1
            success = bool(np.linalg.norm(self._dot - self._goal()) < TOUCH)
            truncated = not success and self._num_steps >= self._config.horizon_steps
            if success or truncated:
                break
        observation = self._observe()
        if not (success or truncated):
            return Step(observation, success, truncated, executed)
        self._running = False
        outcome = toy_observer.outcome(self._path, self._goal(), success=success, control_hz=self.spec.control_hz)
        return Step(observation, success, truncated, executed, outcome)

    def expert_chunk_KA(self, num_actions: int) -> np.ndarray:
        """Straight towards the square that the task names."""
        away = self._goal() - self._dot
        action = np.clip(away / (SPEED * self._config.hold_steps), -1, 1).astype(np.float32)
        return np.repeat(action[None], num_actions, axis=0)

    def expert_rollout(
        self, spec: EpisodeSpec, *, frame_stride: int, views: list[Perturbation], num_actions: int = 1
    ) -> Demonstration:
        """One demonstration; a frame at every chunk boundary, so `frame_stride` has nothing to skip."""
        images, proprio, actions = [], [], []
        observation, success = self.reset(spec), False
        while True:
            images.append([self._draw(view) for view in views])
            proprio.append(observation.proprio_P)
            actions.append(self.expert_chunk_KA(num_actions))
            step = self.step(actions[-1])
            observation, success = step.observation, step.success
            if step.success or step.truncated:
                break
        return Demonstration(
            np.array(images)[:, :, None], np.array(proprio), np.array(actions), success, self._num_steps
        )

    def render_for_people(self, size_px: int) -> np.ndarray:
        """The same drawing, larger."""
        scale = -(-size_px // self._config.image_size_px)
        picture: np.ndarray = self._draw(Perturbation()).repeat(scale, 0).repeat(scale, 1)[:size_px, :size_px]
        return picture

    def close(self) -> None:
        """Nothing to free."""

    def _goal(self) -> np.ndarray:
        if self._episode is None:
            raise UserError("toy", "", "no episode is running", "call reset first")
        if self._episode.task == "toy-edge":
            return np.array([self._dot[0], 1.0])
        goal: np.ndarray = self._target[0 if self._episode.task == "toy-red" else 1]
        return goal

    def _observe(self) -> Observation:
        episode = self._episode
        assert episode is not None
        image = self._draw(episode.perturbation)
        return Observation(image[None], self._dot.astype(np.float32), episode.instruction)

    def _draw(self, look: Perturbation) -> np.ndarray:
        side = self._config.image_size_px
        if look.blank_image:
            return np.zeros((side, side, 3), np.uint8)
        image = _background(side, look.texture)
        shift, zoom = np.array(look.camera_offset_m[:2]) * 2, 0.9 * (FOV_DEG / (FOV_DEG + look.fov_offset_deg))
        shapes = [
            (np.array(thing.centre_m), thing.size_m * 16, np.array(thing.rgb) * 255) for thing in look.distractors
        ]
        shapes += [
            (self._target[0], 3, np.array((200, 30, 30))),
            (self._target[1], 3, np.array((30, 30, 200))),
            (self._dot, 2, np.array((220, 220, 220))),
        ]
        for centre, radius, colour in shapes:
            column, row = ((centre - shift) * [1, -1] * zoom + 1) / 2 * side
            reach = radius * side / 32
            rows = slice(max(0, int(row - reach)), max(0, int(row + reach) + 1))
            columns = slice(max(0, int(column - reach)), max(0, int(column + reach) + 1))
            image[rows, columns] = colour
        lit: np.ndarray = np.clip(image * look.light_gain * np.array(look.colour_gain), 0, 255).astype(np.uint8)
        return lit


def _background(side_px: int, texture: str) -> np.ndarray:
    image = np.full((side_px, side_px, 3), 60.0)
    rows, columns = np.indices((side_px, side_px)) * 8 // side_px % 2
    if texture:
        image[(rows == 1) if texture == "stripes" else (rows != columns)] = 110.0
    return image

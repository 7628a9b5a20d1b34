"""Simulators and a policy that cost time and nothing else: what the rollout benchmark runs episodes on.

Every cost is drawn from (seed, episode, chunk), so every engine, the bound and the simulation see the same ones.
Shape letters: T chunks up to the horizon, B batch, N cameras, H W C image, P proprioception, K actions in a chunk,
A action dimensions.
"""

import time
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from gripline.types import ActionBatch, EnvSpec, EpisodeSpec, Observation, Step

ACTION_DIM = 4
WARM_UP_CHUNKS = 4
"""Length of the episodes behind the last one that counts: engines run a few of them before anything is measured."""


class EpisodeCosts(NamedTuple):
    """What one episode costs."""

    step_s_T: np.ndarray
    """Seconds of every chunk up to the horizon."""
    num_chunks: int
    """Chunks until success, or all."""
    success: bool


@dataclass(frozen=True)
class CostModel:
    """One case of the benchmark."""

    name: str
    env_workers: int = 4
    slots_per_worker: int = 8
    spare_slots: int = 4
    policy_replicas: int = 1
    episodes: int = 256
    horizon_chunks: int = 64
    steps_per_chunk: int = 8
    chunk_s: float = 0.08
    """Mean seconds of a simulator for a chunk."""
    serial: bool = False
    """A worker's simulators share one core: one of them steps or resets at a time."""
    jitter_sigma: float = 0.0
    """Sigma of the log-normal factor, of mean 1, on every chunk's cost."""
    success_rate: float = 0.0
    """Share of episodes that succeed, after a number of chunks that is uniform up to the horizon."""
    reset_s: float = 0.2
    policy_base_s: float = 0.02
    policy_row_s: float = 0.002
    """A batch of n observations takes policy_base_s + policy_row_s · n."""
    image_size_px: int = 16
    seed: int = 0

    @property
    def slots(self) -> int:
        """Episodes that act at the same time."""
        return self.env_workers * self.slots_per_worker

    @property
    def capacity(self) -> int:
        """Simulators that can run at the same time."""
        return self.env_workers if self.serial else self.slots

    def batch_s(self, rows: int) -> float:
        """Seconds of a batch."""
        return self.policy_base_s + self.policy_row_s * rows

    def draw(self, episode: int) -> EpisodeCosts:
        """The costs of one episode; those from number `episodes` on only warm up."""
        rng = np.random.default_rng((self.seed, episode))
        sigma = self.jitter_sigma
        step_s_T = self.chunk_s * np.exp(sigma * rng.standard_normal(self.horizon_chunks) - sigma**2 / 2)
        if episode >= self.episodes:
            return EpisodeCosts(step_s_T, min(WARM_UP_CHUNKS, self.horizon_chunks), False)
        success = bool(rng.random() < self.success_rate)
        num_chunks = int(rng.integers(1, self.horizon_chunks + 1)) if success else self.horizon_chunks
        return EpisodeCosts(step_s_T, num_chunks, success)

    @cached_property
    def all_costs(self) -> list[EpisodeCosts]:
        """Of every episode that counts."""
        return [self.draw(episode) for episode in range(self.episodes)]

    @property
    def num_chunks(self) -> int:
        """Chunks of all episodes, none after success."""
        return sum(costs.num_chunks for costs in self.all_costs)

    @property
    def useful_step_s(self) -> float:
        """Seconds of all these chunks."""
        return float(sum(costs.step_s_T[: costs.num_chunks].sum() for costs in self.all_costs))

    def spec(self, episode: int) -> EpisodeSpec:
        """The episode's name for the engine."""
        return EpisodeSpec(suite="cost", task="none", instruction="", init_seed=episode, split="train")


class CostEnv:
    """Implements `gripline.types.Env` by sleeping."""

    def __init__(self, model: CostModel) -> None:
        self._model = model
        shape_NHWC = (1, model.image_size_px, model.image_size_px, 3)
        self._observation = Observation(np.zeros(shape_NHWC, np.uint8), np.zeros(4, np.float32), "")
        self._costs, self._chunk = model.draw(0), 0
        self.spec = EnvSpec(
            suite="cost",
            tasks=("none",),
            cameras=("none",),
            image_size_px=model.image_size_px,
            proprio_dim=4,
            action_dim=ACTION_DIM,
            action_low_A=(-1.0,) * ACTION_DIM,
            action_high_A=(1.0,) * ACTION_DIM,
            control_hz=10.0,
            horizon_steps=model.horizon_chunks * model.steps_per_chunk,
            success_means="a drawn number of chunks has passed",
        )

    def reset(self, spec: EpisodeSpec) -> Observation:
        """Start the episode that `spec.init_seed` numbers."""
        self._costs, self._chunk = self._model.draw(spec.init_seed), 0
        time.sleep(self._model.reset_s)
        return self._observation

    def step(self, actions_KA: np.ndarray) -> Step:
        """Take the chunk's time."""
        time.sleep(self._costs.step_s_T[self._chunk])
        self._chunk += 1
        over = self._chunk >= self._costs.num_chunks
        success = over and self._costs.success
        return Step(self._observation, success, over and not success, self._model.steps_per_chunk)

    def expert_chunk_KA(self, num_actions: int) -> np.ndarray:
        """Nothing to do."""
        return np.zeros((num_actions, ACTION_DIM), np.float32)

    def render_for_people(self, size_px: int) -> np.ndarray:
        """Nothing to see."""
        return np.zeros((size_px, size_px, 3), np.uint8)

    def close(self) -> None:
        """Nothing to free."""


class CostPolicy:
    """Implements the engine's `ServedPolicy` by sleeping; no batch size is padded."""

    num_actions = 1
    action_dim = ACTION_DIM

    def __init__(self, model: CostModel) -> None:
        self._model = model
        self.batch_sizes = tuple(range(1, model.slots + 1))

    def act(
        self, observations: list[Observation], *, noise_keys: list[tuple[int, int]] | None, temperature: float
    ) -> ActionBatch:
        """Take the batch's time."""
        time.sleep(self._model.batch_s(len(observations)))
        shape_BKA = (len(observations), self.num_actions, ACTION_DIM)
        return ActionBatch(np.zeros(shape_BKA, np.int64), np.zeros(shape_BKA, np.float32), np.zeros(shape_BKA))

    def load_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Has none."""

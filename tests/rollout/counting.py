"""A simulator that counts its chunks, and a policy that says what it was asked. Some episodes go wrong."""

import time
from dataclasses import dataclass

import numpy as np

from gripline.types import ActionBatch, EpisodeSpec, Observation, Step


@dataclass(frozen=True)
class Costs:
    """What a fake simulator and a fake policy do."""

    reset_s: float = 0.0
    step_s: float = 0.0
    batch_s: float = 0.0
    horizon_chunks: int = 3


RAISES = {101: "reset", 103: "step", 105: "act"}
"""Where an exception is raised in the episodes with these init seeds."""


class CountingEnv:
    """Observes (init seed, chunks so far); ends after `horizon_chunks`, with success for even seeds."""

    num_built = 0

    def __init__(self, costs: Costs) -> None:
        CountingEnv.num_built += 1
        self._costs, self._built = costs, CountingEnv.num_built

    def _observe(self) -> Observation:
        state = np.array([self._seed, self._chunk, self._built], np.float32)
        return Observation(np.full((1, 4, 4, 3), self._chunk, np.uint8), state, "count")

    def _maybe_raise(self, where: str) -> None:
        if RAISES.get(self._seed) == where:
            raise ArithmeticError(f"{where} diverged")

    def reset(self, spec: EpisodeSpec) -> Observation:
        self._seed, self._chunk = spec.init_seed, 0
        time.sleep(self._costs.reset_s)
        self._maybe_raise("reset")
        return self._observe()

    def step(self, actions_KA: np.ndarray) -> Step:
        time.sleep(self._costs.step_s)
        self._maybe_raise("step")
        self._chunk += 1
        over = self._chunk == self._costs.horizon_chunks
        success = over and self._seed % 2 == 0
        return Step(self._observe(), success, over and not success, 5)

    def close(self) -> None:
        pass


class EchoPolicy:
    """Acts (init seed, chunk, noise key, weight) of each row; tokens hold the number of rows in the batch."""

    batch_sizes = (1, 2, 4, 8, 16)

    def __init__(self, costs: Costs) -> None:
        self._costs, self._weight = costs, 0.0

    def act(
        self, observations: list[Observation], *, noise_keys: list[tuple[int, int]] | None, temperature: float
    ) -> ActionBatch:
        time.sleep(self._costs.batch_s)
        if any(RAISES.get(int(row.proprio_P[0])) == "act" for row in observations):
            raise FloatingPointError("logits are not finite")
        keys = [(-1, -1)] * len(observations) if noise_keys is None else noise_keys
        actions = [
            [row.proprio_P[0], row.proprio_P[1], *key, self._weight, temperature]
            for row, key in zip(observations, keys, strict=True)
        ]
        actions_BKA = np.array(actions, np.float32)[:, None]
        return ActionBatch(np.full_like(actions_BKA, len(keys), np.int64), actions_BKA, -actions_BKA)

    def load_weights(self, weights: dict[str, np.ndarray]) -> None:
        self._weight = float(weights["weight"][0])

"""The learner as a Ray actor: its own process, its own threads, trajectories fetched from the object store."""

from pathlib import Path
from typing import Any

import numpy as np

from gripline.config import EnvConfig, RlConfig


class LearnerActor:
    """Wraps `Learner`; what a resume needs is written and read here, so that weights never pass the driver."""

    def __init__(self, policy_dir: str, config: RlConfig, seed: int) -> None:
        import torch

        from components.rl.learner import Learner

        torch.set_num_threads(config.learner_threads)
        self._policy_dir = Path(policy_dir)
        self._config = config
        self._learner = Learner(self._policy_dir, config, seed=seed)

    def update(
        self, trajectories: list[Any], advantages: list[float], iteration: int, *, num_old: int
    ) -> dict[str, float]:
        """One update from trajectory references, or {"refused": gap}: before this process's first update the behaviour
        log-probs must agree with the learner's own, but for the first `num_old`, which an earlier policy acted out."""
        import ray

        episodes = ray.get(trajectories)
        metrics: dict[str, float] = {}
        if not self._learner.has_updated and num_old < len(episodes):
            gap = self._learner.logprob_gap(self._learner.batch(episodes[num_old:], advantages[num_old:]))
            if not gap <= self._config.logprob_tolerance:  # NaN too
                return {"refused": gap}
            metrics["logprob_gap"] = gap
        return self._learner.update(self._learner.batch(episodes, advantages), iteration=iteration) | metrics

    def weights(self) -> dict[str, np.ndarray]:
        """Full weights for the policy servers."""
        return self._learner.weights()

    def save_state(self, path: str) -> None:
        """Write weights and optimizer; the caller renames the folder into place."""
        import torch

        torch.save(self._learner.state(), path)

    def load_state(self, path: str) -> None:
        """Read what `save_state` wrote (tensors only, never a pickle)."""
        import torch

        self._learner.load_state(torch.load(path, weights_only=True))

    def save_policy(self, directory: str, env: EnvConfig, provenance: dict[str, Any]) -> str:
        """Write the present weights as a self-contained checkpoint; returns its hash."""
        from gripline.policies import save_policy

        return save_policy(directory, self._learner.vla, env=env, **provenance)

"""The learner as a Ray actor: its own process, its own threads, trajectories fetched from the object store."""

import shutil
from typing import Any

import numpy as np

from gripline.config import EnvConfig, RlConfig
from gripline.store import fetch, read_once, written


class LearnerActor:
    """Wraps `Learner`; weights are read from the run's store and written to it here, so that they never pass the
    driver, which may be on another machine."""

    def __init__(self, policy_uri: str, config: RlConfig, seed: int) -> None:
        import torch

        from components.rl.learner import Learner

        torch.set_num_threads(config.learner_threads)
        self._config = config
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._learner = Learner(fetch(policy_uri), config, seed=seed, device=device)

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

    def save_state(self, uri: str) -> None:
        """Write weights and optimizer; the caller marks the folder as complete."""
        import torch

        with written(uri) as path:
            torch.save(self._learner.state(), path)

    def load_state(self, uri: str) -> None:
        """Read what `save_state` wrote (tensors only, never a pickle)."""
        import torch

        with read_once(uri) as path:
            self._learner.load_state(torch.load(path, weights_only=True, map_location="cpu"))

    def save_policy(self, uri: str, env: EnvConfig, provenance: dict[str, Any]) -> str:
        """Write the present weights as a self-contained checkpoint, over a former one; returns its hash."""
        from gripline.policies import save_policy

        with written(uri) as directory:
            shutil.rmtree(directory, ignore_errors=True)  # of an attempt that died before its next state
            return save_policy(directory, self._learner.vla, env=env, **provenance)

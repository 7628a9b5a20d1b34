"""The two schedules that other VLA RL frameworks use, on the same cost models and on Ray as well.

Both draw a batch of episodes for all slots, reset them together, and step every slot to the horizon, whether its
episode has succeeded or not; then comes the next batch of episodes.

* One stage (lock-step): all slots step, the policy answers all of them, all slots step…
* Two stages: each worker's slots are split into two halves. While the policy answers one half, the worker steps the
  other; a worker's halves step one after the other, and the policy serves them in turn.

Kept favourable to them: a worker's simulators that have cores of their own wait for one another once per chunk, not
after each control step; resets of a half run at the same time; the whole plan of a batch of episodes is handed to Ray
at once, so no driver is in the loop; observations go from worker to policy directly.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from cost_model import ACTION_DIM, CostModel, EpisodeCosts


@dataclass(frozen=True)
class Measured:
    """What an engine needed for a case."""

    seconds: float
    step_s: float
    """Seconds that simulators stepped, summed over them."""
    policy_busy_s: float
    dead_steps: int
    """Control steps after success."""


class ReferenceWorker:
    """An env worker: one vector environment for each stage."""

    def __init__(self, model: CostModel) -> None:
        self._model = model
        self._costs: dict[int, list[EpisodeCosts]] = {}
        self._chunk: dict[int, int] = {}
        self._step_s = 0.0

    def reset(self, stage: int, episodes: list[int]) -> np.ndarray:
        """Reset a stage's slots to these episodes; returns their observations, uint8 (B, 1, H, W, 3)."""
        self._costs[stage] = [self._model.draw(episode) for episode in episodes]
        self._chunk[stage] = 0
        time.sleep(self._model.reset_s * (len(episodes) if self._model.serial else 1))
        return self._observations(stage)

    def step(self, stage: int, _actions_BKA: np.ndarray) -> np.ndarray:
        """Step a stage's slots by a chunk; waits for the slowest."""
        costs_s = [float(costs.step_s_T[self._chunk[stage]]) for costs in self._costs[stage]]
        self._chunk[stage] += 1
        self._step_s += sum(costs_s)
        time.sleep(sum(costs_s) if self._model.serial else max(costs_s))
        return self._observations(stage)

    def take_step_s(self) -> float:
        """Seconds that simulators stepped since the last call."""
        step_s, self._step_s = self._step_s, 0.0
        return step_s

    def _observations(self, stage: int) -> np.ndarray:
        size_px = self._model.image_size_px
        return np.zeros((len(self._costs[stage]), 1, size_px, size_px, 3), np.uint8)


class ReferencePolicy:
    """A policy server: one batch for each call."""

    def __init__(self, model: CostModel) -> None:
        self._model = model
        self._busy_s = 0.0

    def act(self, *observations: np.ndarray) -> np.ndarray:
        """Actions (B, 1, A) for the observations of all workers."""
        images_BNHWC = np.concatenate(observations)
        seconds = self._model.batch_s(len(images_BNHWC))
        self._busy_s += seconds
        time.sleep(seconds)
        return np.zeros((len(images_BNHWC), 1, ACTION_DIM), np.float32)

    def take_busy_s(self) -> float:
        """Seconds of all batches since the last call."""
        busy_s, self._busy_s = self._busy_s, 0.0
        return busy_s


class Reference:
    """A reference schedule with its processes running; needs a Ray cluster."""

    def __init__(self, model: CostModel, *, stages: int) -> None:
        if model.policy_replicas != 1:
            raise ValueError("the reference schedules have one policy server")
        self._model, self._stages = model, stages
        env = ray.remote(num_cpus=0, resources={"env": 1})(ReferenceWorker)
        self._workers = [env.remote(model) for _ in range(model.env_workers)]
        self._policy = ray.remote(num_cpus=0, resources={"policy": 1})(ReferencePolicy).remote(model)
        self._run_batch(list(range(model.episodes, model.episodes + model.slots)), chunks=2)  # warms up
        self._take_counters()

    def run(self) -> Measured:
        """Run all episodes of the case."""
        model = self._model
        started = time.perf_counter()
        for first in range(0, model.episodes, model.slots):
            self._run_batch(list(range(first, min(first + model.slots, model.episodes))), model.horizon_chunks)
        seconds = time.perf_counter() - started
        step_s, policy_busy_s = self._take_counters()
        dead_chunks = model.episodes * model.horizon_chunks - model.num_chunks
        return Measured(seconds, step_s, policy_busy_s, dead_chunks * model.steps_per_chunk)

    def _run_batch(self, episodes: list[int], chunks: int) -> None:
        """One batch of episodes, a slot for each, spread evenly over workers and their stages."""
        groups = [episodes[index :: len(self._workers)] for index in range(len(self._workers))]
        rows: dict[int, list[tuple[Any, Any]]] = {stage: [] for stage in range(self._stages)}
        for worker, group in zip(self._workers, groups, strict=True):
            for stage in rows:
                part = group[stage :: self._stages]
                if part:
                    rows[stage].append((worker, worker.reset.remote(stage, part)))
        for _ in range(chunks):
            for stage, pairs in rows.items():
                if pairs:
                    actions = self._policy.act.remote(*[observations for _, observations in pairs])
                    rows[stage] = [(worker, worker.step.remote(stage, actions)) for worker, _ in pairs]
        ray.get([observations for pairs in rows.values() for _, observations in pairs])

    def _take_counters(self) -> tuple[float, float]:
        step_s = sum(ray.get([worker.take_step_s.remote() for worker in self._workers]))
        return step_s, ray.get(self._policy.take_busy_s.remote())

    def close(self) -> None:
        """Stop the processes."""
        for actor in [*self._workers, self._policy]:
            ray.kill(actor)

"""The two Ray actors of a rollout. Both are asynchronous: no slot waits for another, the policy batches what is ready.

An environment worker owns several slots. Each slot runs one episode as a coroutine: step a chunk, hand the picture
over, wait for actions. Pictures of slots that become ready together travel to the policy server in one message, from
process to process, never through the driver. The simulator blocks the worker's loop while it steps: that is the core it
is there to use. Environment workers never import torch.
"""

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gripline.config import EnvConfig
from gripline.types import ActionBatch, Env, EpisodeRecord, EpisodeSpec, Observation, Trajectory


class PolicyFailedError(Exception):
    """The policy server failed: no simulator's fault, so no reason to try the episode again."""


@dataclass(frozen=True)
class Decoding:
    """How actions are chosen: greedily, or sampled with noise keyed by (spec.noise_seed, chunk index)."""

    greedy: bool
    temperature: float = 1.0
    keep_trajectory: bool = False


@dataclass(frozen=True)
class EpisodeStats:
    """Where one episode's time went, in seconds of its worker."""

    reset_s: float
    step_s: float
    wait_s: float


@dataclass(frozen=True)
class _Waiting:
    """A slot that waits for actions."""

    observation: Observation
    noise_key: tuple[int, int]
    decoding: Decoding
    future: asyncio.Future[Any]


class EnvWorker:
    """Runs episodes on `num_slots` simulator slots; wrapped in a Ray actor by the engine."""

    def __init__(self, env: EnvConfig, policy: Any, num_slots: int, renderer: dict[str, str]) -> None:
        """renderer: environment variables that settle how pictures are drawn, the same in every worker."""
        self._config = env
        self._policy = policy
        self._flush_at = max(1, num_slots // 2)
        self._idle: list[Env] = []
        self._outbox: list[_Waiting] = []
        self._flush_scheduled = False
        self._sending: set[asyncio.Task[None]] = set()
        os.environ |= renderer

    async def warm_up(self, tasks: tuple[str, ...]) -> int:
        """Build the simulators before the first episode needs them; returns this process's id."""
        from gripline.envs import make_env

        env = make_env(self._config)
        for task in tasks:
            spec = EpisodeSpec(suite=self._config.suite, task=task, instruction="", init_seed=0, split="train")
            env.reset(spec)
        self._idle.append(env)
        return os.getpid()

    async def run_episode(
        self, spec: EpisodeSpec, decoding: Decoding
    ) -> tuple[tuple[EpisodeRecord, EpisodeStats], Trajectory | None]:
        """Run one episode to success or to the horizon. Exceptions of the simulator reach the driver, which decides."""
        from gripline.envs import make_env

        env = self._idle.pop() if self._idle else make_env(self._config)
        result = await self._run(env, spec, decoding)
        self._idle.append(env)  # not after an exception: a simulator that raised is not used again
        return result

    async def _run(
        self, env: Env, spec: EpisodeSpec, decoding: Decoding
    ) -> tuple[tuple[EpisodeRecord, EpisodeStats], Trajectory | None]:
        started = time.perf_counter()
        observation = env.reset(spec)
        reset_s = time.perf_counter() - started
        step_s = wait_s = 0.0
        num_steps, success = 0, False
        observations: list[Observation] = []
        answers: list[ActionBatch] = []
        while True:
            asked = time.perf_counter()
            answer = await self._act(observation, (spec.noise_seed, len(answers)), decoding)
            stepping = time.perf_counter()
            step = env.step(answer.actions_BKA[0])
            step_s += time.perf_counter() - stepping
            wait_s += stepping - asked
            num_steps += step.num_steps
            observations.append(observation)
            answers.append(answer)
            observation, success = step.observation, step.success
            if step.success or step.truncated:
                break
        actions_TKA = np.concatenate([answer.actions_BKA for answer in answers])
        record = EpisodeRecord(
            spec=spec, success=success, num_steps=num_steps, num_chunks=len(answers), actions_TKA=actions_TKA.tolist()
        )
        trajectory = _trajectory(spec, observations, answers) if decoding.keep_trajectory else None
        return (record, EpisodeStats(reset_s, step_s, wait_s)), trajectory

    async def _act(self, observation: Observation, noise_key: tuple[int, int], decoding: Decoding) -> ActionBatch:
        """Queue one observation; it leaves with the others that are ready, at the latest when nothing else is."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._outbox.append(_Waiting(observation, noise_key, decoding, future))
        if len(self._outbox) >= self._flush_at:
            self._flush()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            loop.call_soon(self._flush)
        answer: ActionBatch = await future
        return answer

    def _flush(self) -> None:
        self._flush_scheduled = False
        waiting, self._outbox = self._outbox, []
        for decoding in dict.fromkeys(row.decoding for row in waiting):
            batch = [row for row in waiting if row.decoding == decoding]
            task = asyncio.get_running_loop().create_task(self._send(batch, decoding))
            self._sending.add(task)  # the loop itself holds tasks only weakly
            task.add_done_callback(self._sending.discard)

    async def _send(self, batch: list["_Waiting"], decoding: Decoding) -> None:
        keys = None if decoding.greedy else [row.noise_key for row in batch]
        observations = [row.observation for row in batch]
        try:
            answer = await self._policy.act.remote(observations, keys, decoding.temperature)
        except Exception as error:  # noqa: BLE001  whatever it is, the episodes that wait for an answer must hear of it
            for row in batch:
                row.future.set_exception(PolicyFailedError(f"{type(error).__name__}: {error}"))
            return
        for index, row in enumerate(batch):
            row.future.set_result(_rows(answer, slice(index, index + 1)))


class PolicyServer:
    """Answers observations with action chunks: whatever has arrived when it becomes free is one batch."""

    def __init__(self, policy_dir: str) -> None:
        import torch

        from gripline.policies import load_policy
        from gripline.policies.inference import make_policy

        torch.set_num_threads(1)
        self._vla = load_policy(Path(policy_dir)).eval()
        self._policy = make_policy(self._vla)
        self._queue: list[tuple[list[Observation], list[tuple[int, int]] | None, float, asyncio.Future[Any]]] = []
        self._busy_s = 0.0
        self._num_rows = 0

    async def ready(self) -> bool:
        """Answers once the policy is loaded; a failure to load reaches whoever waits for this."""
        return True

    async def set_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Take over the learner's weights, between iterations."""
        import torch

        state = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
        self._vla.load_state_dict(state)

    async def take_counters(self) -> tuple[float, int]:
        """(seconds busy, observations answered) since the last call."""
        counters = (self._busy_s, self._num_rows)
        self._busy_s, self._num_rows = 0.0, 0
        return counters

    async def act(
        self, observations: list[Observation], noise_keys: list[tuple[int, int]] | None, temperature: float
    ) -> ActionBatch:
        """Queue a request; all that arrived together are computed together."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if not self._queue:
            loop.call_soon(self._serve)
        self._queue.append((observations, noise_keys, temperature, future))
        answer: ActionBatch = await future
        return answer

    def _serve(self) -> None:
        waiting, self._queue = self._queue, []
        for mode in dict.fromkeys((keys is None, temperature) for _, keys, temperature, _ in waiting):
            self._serve_mode(*mode, [item for item in waiting if (item[1] is None, item[2]) == mode])

    def _serve_mode(self, greedy: bool, temperature: float, waiting: list[Any]) -> None:
        started = time.perf_counter()
        observations = [observation for item in waiting for observation in item[0]]
        keys = None if greedy else [key for item in waiting for key in item[1]]
        try:
            answer = self._policy.act(observations, noise_keys=keys, temperature=temperature)
        except Exception as error:  # noqa: BLE001  whatever it is, whoever waits for an answer must hear of it
            for *_, future in waiting:
                future.set_exception(error)
            return
        first = 0
        for rows, _, _, future in waiting:
            future.set_result(_rows(answer, slice(first, first + len(rows))))
            first += len(rows)
        self._busy_s += time.perf_counter() - started
        self._num_rows += len(observations)


def _rows(answer: ActionBatch, part: slice) -> ActionBatch:
    return ActionBatch(answer.tokens_BKA[part], answer.actions_BKA[part], answer.logprobs_BKA[part])


def _trajectory(spec: EpisodeSpec, observations: list[Observation], answers: list[ActionBatch]) -> Trajectory:
    return Trajectory(
        instruction=spec.instruction,
        images_TNHWC=np.stack([observation.images_NHWC for observation in observations]),
        proprio_TP=np.stack([observation.proprio_P for observation in observations]),
        tokens_TKA=np.concatenate([answer.tokens_BKA for answer in answers]),
        logprobs_TKA=np.concatenate([answer.logprobs_BKA for answer in answers]),
    )

"""The demonstrations stage: the scripted expert shows each task a few times, under varied camera, light and colours."""

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from gripline import progress
from gripline.config import EnvConfig
from gripline.demos.dataset import DemoSet
from gripline.envs import prepare
from gripline.errors import UserError
from gripline.seen_states import seen_in
from gripline.splits import Splits, build_splits, draw_variation
from gripline.stages import DemosStage
from gripline.types import EpisodeSpec, Perturbation

TRIES_PER_DEMO = 3


@dataclass(frozen=True)
class _Job:
    """One demonstration to record: the first of `candidates` on which the expert succeeds."""

    candidates: tuple[EpisodeSpec, ...]
    views: tuple[Perturbation, ...]
    held_out: bool


def run(*, config: str, demos_path: str, checkpoint_uri: str) -> dict[str, Any]:
    """Record the demonstrations into folder `demos_path`; with a given checkpoint nothing would learn from them."""
    stage = DemosStage.model_validate_json(config)
    folder = Path(demos_path)
    if checkpoint_uri:
        folder.mkdir(parents=True, exist_ok=True)
        progress.emit("demos", "note", text="a checkpoint is given: no demonstrations needed")
        return {"demonstrations": 0, "frames": 0, "seconds": 0.0}
    started = time.perf_counter()
    prepare(stage.env)
    jobs = _jobs(stage, build_splits(stage))
    recorded: list[tuple[_Job, dict[str, np.ndarray], int]] = []
    with ProcessPoolExecutor(min(stage.demos.workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_record, stage, job) for job in jobs]
        for done, (job, future) in enumerate(zip(jobs, futures, strict=True), start=1):
            arrays, failed = future.result()
            recorded.append((job, arrays, failed))
            progress.emit(
                "demos", "advance", done=done, total=len(jobs), metrics={"failed": sum(f for *_, f in recorded)}
            )
    demos = _assemble(recorded, time.perf_counter() - started)
    demos.save(folder)
    return {"demonstrations": len(jobs), "frames": len(demos), "seconds": demos.facts["seconds"]}


def _jobs(stage: DemosStage, splits: Splits) -> list[_Job]:
    """Demonstrations use the first states of the train list, held-out ones the first of the validation list."""
    rng = np.random.default_rng([stage.seed, 3])
    jobs = []
    for task in stage.env.tasks:
        for name, count in (("train", stage.demos.per_task), ("val", stage.demos.held_out_per_task)):
            states = [spec for spec in splits.lists[name] if spec.task == task]
            if len(states) < count:
                raise UserError(
                    "splits", f"{name}_per_task", f"{len(states)} states for {count} demonstrations", "raise it"
                )
            tries = min(TRIES_PER_DEMO, len(states) // count)
            for index in range(count):
                views = tuple(draw_variation(stage.variation, rng) for _ in range(stage.demos.views))
                jobs.append(_Job(tuple(states[index : tries * count : count]), views, held_out=name == "val"))
    return jobs


def _record(stage: DemosStage, job: _Job) -> tuple[dict[str, np.ndarray], int]:
    """Runs in a worker process: (arrays of one successful demonstration, number of failed attempts)."""
    env = _env(stage.env)
    for failed, spec in enumerate(job.candidates):
        demo = env.expert_rollout(
            spec, frame_stride=stage.demos.frame_stride, views=list(job.views), num_actions=stage.num_actions
        )
        if demo.success:
            num_views = len(job.views)
            arrays = {
                "images_FNHWC": demo.images_TVNHWC.reshape(-1, *demo.images_TVNHWC.shape[2:]),
                "proprio_FP": np.repeat(demo.proprio_TP, num_views, axis=0),
                "actions_FKA": np.repeat(demo.actions_TKA, num_views, axis=0),
            }
            return arrays, failed
    seeds = ", ".join(str(spec.init_seed) for spec in job.candidates)
    raise UserError(
        "demos", job.candidates[0].task, f"the expert failed on init seeds {seeds}", "choose another task or seed"
    )


_ENVS: dict[str, Any] = {}


def _env(config: EnvConfig) -> Any:
    """One environment per worker process, kept between demonstrations."""
    from gripline.envs import make_env

    key = config.model_dump_json()
    if key not in _ENVS:
        _ENVS[key] = make_env(config)
    return _ENVS[key]


def _assemble(recorded: list[tuple[_Job, dict[str, np.ndarray], int]], seconds: float) -> DemoSet:
    instructions = tuple(dict.fromkeys(job.candidates[0].instruction for job, *_ in recorded))
    lengths = [len(arrays["proprio_FP"]) for _, arrays, _ in recorded]
    texts = [instructions.index(job.candidates[0].instruction) for job, *_ in recorded]
    episodes = [-1 - number if job.held_out else number for number, (job, *_) in enumerate(recorded)]
    return DemoSet(
        **{name: np.concatenate([arrays[name] for _, arrays, _ in recorded]) for name in recorded[0][1]},
        instruction_F=np.repeat(np.array(texts), lengths),
        episode_F=np.repeat(np.array(episodes), lengths),
        instructions=instructions,
        facts={
            "demonstrations": sum(not job.held_out for job, *_ in recorded),
            "held_out": sum(job.held_out for job, *_ in recorded),
            "failed_attempts": sum(failed for *_, failed in recorded),
            "seconds": seconds,
        },
        seen_states=seen_in(job.candidates[failed] for job, _, failed in recorded),
    )

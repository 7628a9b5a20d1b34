"""What an evaluation costs beside its episodes: the stage and the bare rollouts in turn, on one engine."""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from unittest import mock

from components.eval.evaluate import EvalJob, decoding_of, evaluate
from gripline.config import Profile
from gripline.draws import draws
from gripline.envs.suites import env_spec, task_info
from gripline.policies import build_policy, save_policy
from gripline.rollout.cluster import ray_cluster
from gripline.rollout.engine import RolloutEngine, standard_engine
from gripline.splits import build_splits
from gripline.stages import EvalStage, RunContext
from gripline.store import RunStore
from gripline.tracking import ensure_parent

EXPERIMENT = "evaluation-overhead"
BARE, STAGE, UNTRACKED = "bare rollouts, s", "evaluation stage, s", "evaluation stage without MLflow, s"
OVERHEAD, UNTRACKED_OVERHEAD = "stage over bare rollouts, %", "without MLflow, %"


def measure(profile: Profile, repeats: int) -> dict[str, float]:
    """Median seconds for the whole list, and the median over repeats of how much longer the stage took, in %.

    The policy is untrained, so that nearly every episode goes to the horizon. The stage is everything but the start of
    the actors: checks, results file, counting, and MLflow's delivery into an SQLite file that was made before; it is
    timed without that too. Which comes first changes from repeat to repeat.
    """
    with tempfile.TemporaryDirectory(prefix="gripline-") as scratch:
        folder = Path(scratch)
        tracking = f"sqlite:///{folder / 'mlflow.db'}"
        job = _job(profile, folder)
        parents = [ensure_parent(tracking, EXPERIMENT, f"{number}", tags={}, params={}) for number in range(repeats)]
        seconds: dict[str, list[float]] = {name: [] for name in (BARE, STAGE, UNTRACKED)}
        with ray_cluster(profile.rollout), standard_engine(profile.env, job.policy_uri, profile.rollout) as engine:
            _bare(job, engine)  # from it the engine learns what everything costs
            for number, parent in enumerate(parents):
                context = _context(profile, folder / f"{number}", tracking, parent)
                untracked = context.model_copy(update={"run_dir": f"{folder}/untracked-{number}"})
                ways: list[tuple[str, Callable[[], None]]] = [
                    (BARE, partial(_bare, job, engine)),
                    (STAGE, partial(_stage, job, context, engine)),
                    (UNTRACKED, partial(_untracked_stage, job, untracked, engine)),
                ]
                for name, work in ways[number % 3 :] + ways[: number % 3]:
                    seconds[name].append(_timed(work))
    found = {"episodes": float(len(job.specs))} | {name: statistics.median(own) for name, own in seconds.items()}
    for name, label in ((STAGE, OVERHEAD), (UNTRACKED, UNTRACKED_OVERHEAD)):
        ratios = [whole / bare for whole, bare in zip(seconds[name], seconds[BARE], strict=True)]
        found[label] = 100 * (statistics.median(ratios) - 1)
    return found


def _job(profile: Profile, folder: Path) -> EvalJob:
    env = profile.env
    instructions = [task_info(env.suite, task).instruction for task in env.tasks]
    policy = build_policy(profile.policy, env_spec(env), instructions=instructions, seed=1)
    policy.heads_trained = ("token",)
    save_policy(folder / "policy", policy, env=env, stage="sft")
    section = EvalStage(env=env, rollout=profile.rollout, eval=profile.eval, seed=profile.seed)
    specs = draws(build_splits(profile).tested, profile.eval)
    return EvalJob(section, str(folder / "policy"), specs, RunStore(str(folder / "none")), "eval-sft")


def _context(profile: Profile, run_dir: Path, tracking_uri: str, parent_run_id: str) -> RunContext:
    return RunContext(
        run_name=run_dir.name,
        run_dir=str(run_dir),
        tracking_uri=tracking_uri,
        experiment=EXPERIMENT,
        parent_run_id=parent_run_id,
        profile_name=profile.name,
        seed=profile.seed,
        split_hashes={},
    )


def _bare(job: EvalJob, engine: RolloutEngine) -> None:
    for _ in engine.run(job.specs, decoding_of(job.section.eval)):
        pass


def _stage(job: EvalJob, context: RunContext, engine: RolloutEngine) -> None:
    own = EvalJob(job.section, job.policy_uri, job.specs, RunStore(context.run_dir), job.stage)
    with tempfile.TemporaryFile("w") as log, redirect_stdout(log):
        outputs = evaluate(own, lambda: context, engine)
    if outputs["episodes"] != len(job.specs) or outputs["errors"]:
        raise RuntimeError(f"not every episode was run: {outputs}")


def _untracked_stage(job: EvalJob, context: RunContext, engine: RolloutEngine) -> None:
    with mock.patch("gripline.tracking.stage_run", lambda context, stage: nullcontext(mock.MagicMock())):
        _stage(job, context, engine)


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started

"""The evaluation stage: every listed episode exactly once, the same numbers on any number of workers."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gripline import progress, stopping
from gripline.checkpoint import check_fits, hash_at, manifest_at
from gripline.config import EvalConfig
from gripline.draws import draws
from gripline.envs.suites import env_spec, shared_scene_tasks
from gripline.errors import UserError
from gripline.results import ResultsWriter, write_results
from gripline.seen_states import check_unseen
from gripline.shards import RESULTS_FILE, Part, Shard
from gripline.shards import merge as merge_shards
from gripline.splits import Splits
from gripline.stages import EvalStage, RunContext
from gripline.store import RunStore, StageResult, digest
from gripline.summary import indifference_warnings, summarise_policy
from gripline.tables import policy_metrics
from gripline.types import Conduct, EpisodeRecord, EpisodeSpec

if TYPE_CHECKING:
    from gripline.rollout.actors import Decoding
    from gripline.rollout.engine import RolloutEngine

PUSH_EVERY_S = 30.0
"""Between two uploads of the episodes so far to a remote store: what a lost pod may cost."""


@dataclass(frozen=True)
class EvalJob:
    """One policy, the episodes to run with it, and where the results go."""

    section: EvalStage
    policy_uri: str
    specs: Sequence[EpisodeSpec]
    store: RunStore
    stage: str
    """'eval-sft' or 'eval-rl': the folder of the run."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of all that decides the results. Raises UserError where there is no checkpoint."""
        config = self.section.eval
        sampled = [] if config.decoding == "greedy" else [f"sampled at temperature {config.temperature}"]
        keys = (spec.key for spec in self.specs)
        return digest(self.section.env.model_dump_json(), hash_at(self.policy_uri), *sampled, *keys)


def run(
    *, context: str, config: str, splits_path: str, policy_uri: str, stage: str, results_path: str
) -> dict[str, Any]:
    """Evaluate the policy at `policy_uri` on the IID, OOD and ablation lists; results go to `results_path` as JSONL.

    stage: 'sft' or 'rl', whose policy this is. Returns scalar metrics. What an interrupted evaluation finished is kept.
    """
    run_context = RunContext.model_validate_json(context)
    section = EvalStage.model_validate_json(config)
    specs = draws(Splits.read(splits_path).tested, section.eval)
    job = EvalJob(section, policy_uri, specs, RunStore(run_context.run_dir), f"eval-{stage}")
    outputs = evaluate(job, lambda: run_context)
    Path(results_path).parent.mkdir(parents=True, exist_ok=True)
    Path(results_path).write_bytes((job.store.local / job.stage / RESULTS_FILE).read_bytes())
    return outputs


def evaluate(job: EvalJob, context: Callable[[], RunContext], engine: "RolloutEngine | None" = None) -> dict[str, Any]:
    """Run the whole list and log it, or find it done. Returns scalar metrics.

    context: asked for where something is to be logged. engine: one that runs already, to be used. Episodes that the
    simulator's errors ended are run again when a finished evaluation is asked for once more.
    """
    _check_fits(job)
    finished = find(job)
    if finished is None:
        from gripline.tracking import stage_run

        with stage_run(context(), job.stage) as tracker:
            records, outputs = _run_list(job, job.stage, job.specs, engine)
            finished = _conclude(job, records, StageResult(fingerprint=job.fingerprint, outputs=outputs), tracker)
    return dict(finished.outputs)


def evaluate_shard(job: EvalJob, shard: Shard, engine: "RolloutEngine | None" = None) -> dict[str, Any]:
    """Run one shard of the list, or find it done. Returns scalar metrics; only merged shards are logged."""
    _check_fits(job)
    folder = shard.folder(job.stage)
    finished = find(job, folder)
    if finished is None:
        _, outputs = _run_list(job, folder, shard.of(job.specs), engine)
        job.store.push(folder)
        finished = StageResult(fingerprint=job.fingerprint, outputs=outputs)
        finished.write(job.store, folder)
    return dict(finished.outputs)


def merge(job: EvalJob, parts: Sequence[Part], context: Callable[[], RunContext]) -> dict[str, Any]:
    """Make the shards one evaluation, the same file as without them; log it. Returns scalar metrics.

    Raises UserError as `gripline.shards.merge` does.
    """
    result, records = merge_shards(parts, job.stage, job.specs)
    from gripline.tracking import stage_run

    with stage_run(context(), job.stage) as tracker:
        write_results(job.store.local / job.stage / RESULTS_FILE, records)
        return dict(_conclude(job, records, result, tracker).outputs)


def find(job: EvalJob, folder: str = "") -> StageResult | None:
    """The finished evaluation of the job, or its shard in `folder`; None if something is left to run.

    Raises UserError where the folder holds another evaluation.
    """
    job.store.pull(folder or job.stage)
    finished = StageResult.find(job.store, folder or job.stage, job.fingerprint)
    if finished is None:
        return None
    if finished.outputs["errors"]:
        lost = f"{finished.outputs['errors']} episodes that the simulator lost are run again"
        progress.emit(job.stage, "note", text=lost)
        return None
    progress.emit(job.stage, "note", text="already finished, kept")
    return finished


def decoding_of(config: EvalConfig) -> "Decoding":
    """How the policy acts in an evaluation."""
    from gripline.rollout.actors import Decoding

    return Decoding(greedy=config.decoding == "greedy", temperature=config.temperature)


def _check_fits(job: EvalJob) -> None:
    """Raises UserError where the policy cannot act in this environment, or was trained on what is tested."""
    env, manifest = job.section.env, manifest_at(job.policy_uri)
    check_fits(manifest, env_spec(env), env, where=job.policy_uri)
    check_unseen(manifest, job.specs, where=job.policy_uri)


def _conclude(job: EvalJob, records: Sequence[EpisodeRecord], result: StageResult, tracker: Any) -> StageResult:
    """Count and log, then mark as finished."""
    env, results = job.section.env, job.store.local / job.stage / RESULTS_FILE
    shared = shared_scene_tasks(env.suite, env.tasks)
    policy = summarise_policy(records, shared)
    for warning in indifference_warnings(policy, job.section.eval.indifference_threshold, shared):
        progress.emit(job.stage, "warn", text=warning)
    outputs = result.outputs | {"iid_success": policy.iid.success}
    tracker.log_metrics(policy_metrics(policy) | {f"eval/{name}": float(value) for name, value in outputs.items()})
    tracker.log_artifact(results)
    tracker.log_table("episodes", [_row(record) for record in records])
    job.store.push(job.stage)
    finished = StageResult(fingerprint=result.fingerprint, outputs=outputs)
    finished.write(job.store, job.stage)
    return finished


def _row(record: EpisodeRecord) -> dict[str, object]:
    spec = record.spec
    named = {"task": spec.task, "axis": spec.axis, "instruction": spec.instruction, "init_seed": spec.init_seed}
    ended = {"success": record.success, "steps": record.num_steps, "failure": record.failure, "error": record.error}
    conduct = (record.conduct or Conduct()).model_dump()  # each row has every column
    return named | {"draw": spec.member} | ended | conduct | {"key": spec.key}


def _run_list(
    job: EvalJob, folder: str, specs: Sequence[EpisodeSpec], engine: "RolloutEngine | None"
) -> tuple[list[EpisodeRecord], dict[str, str | float | int]]:
    """All of `specs`, those kept from before included; results go to `folder` of the run."""
    started = time.perf_counter()
    writer = ResultsWriter(job.store.local / folder / RESULTS_FILE)
    todo = writer.missing(specs)
    if len(todo) < len(specs):
        progress.emit(job.stage, "note", text=f"{len(specs) - len(todo)} of {len(specs)} episodes kept from before")
    speed: dict[str, float] = {}
    try:
        if todo:
            progress.emit(job.stage, "note", text="starting Ray actors")
            with _own_engine(job) if engine is None else nullcontext(engine) as ready:
                speed = _run_missing(job, folder, todo, writer, ready, kept=len(specs) - len(todo))
        lost = writer.missing(specs)
        if specs and len(lost) == len(specs):
            why = writer.error_of(specs[0])
            raise UserError(job.stage, "", f"every simulator failed: {why}", "see `gripline doctor`")
        records = writer.finish(specs)
    finally:
        writer.close()
    return records, {
        "episodes": len(records),
        "errors": len(lost),
        "env_steps": sum(record.num_steps for record in records),
        "seconds": time.perf_counter() - started,
        **speed,
    }


@contextmanager
def _own_engine(job: EvalJob) -> Iterator["RolloutEngine"]:
    from gripline.rollout.cluster import ray_cluster
    from gripline.rollout.engine import standard_engine

    rollout = job.section.rollout
    with ray_cluster(rollout), standard_engine(job.section.env, job.policy_uri, rollout) as engine:
        yield engine


def _run_missing(
    job: EvalJob,
    folder: str,
    todo: Sequence[EpisodeSpec],
    writer: ResultsWriter,
    engine: "RolloutEngine",
    *,
    kept: int,
) -> dict[str, float]:
    """Run each episode and write it as it ends. Returns the throughput, without the start of the actors."""
    started = pushed_at = time.monotonic()
    iid = successes = steps = 0
    for done, episode in enumerate(engine.run(todo, decoding_of(job.section.eval)), start=1):
        record = episode.record
        writer.append(record)
        steps += record.num_steps
        if record.spec.axis == "iid" and not record.error:
            iid, successes = iid + 1, successes + record.success
        now = time.monotonic()
        shown = {"iid_success": successes / max(iid, 1), "episodes_per_s": done / max(now - started, 1e-9)}
        progress.emit(job.stage, "advance", done=kept + done, total=kept + len(todo), metrics=shown)
        if stopping.requested() or now - pushed_at >= PUSH_EVERY_S:
            job.store.push(folder)
            pushed_at = now
            stopping.check()
    seconds = max(time.monotonic() - started, 1e-9)
    return {"episodes_per_s": len(todo) / seconds, "env_steps_per_s": steps / seconds}

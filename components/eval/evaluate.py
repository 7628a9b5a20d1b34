"""The evaluation stage: every listed episode exactly once, greedy, the same numbers on any number of workers."""

import time
from pathlib import Path
from typing import Any

from gripline import progress, stopping
from gripline.checkpoint import check_fits, hash_at, manifest_at
from gripline.envs.suites import env_spec, shared_scene_tasks
from gripline.errors import UserError
from gripline.results import ResultsWriter
from gripline.splits import Splits
from gripline.stages import EvalStage, RunContext
from gripline.store import RunStore, StageResult, digest
from gripline.summary import indifference_warnings, summarise_policy
from gripline.tables import policy_metrics
from gripline.types import EpisodeRecord, EpisodeSpec

PUSH_EVERY_S = 30.0
"""Between two uploads of the episodes so far to a remote store: what a lost pod may cost."""


def run(
    *, context: str, config: str, splits_path: str, policy_uri: str, stage: str, results_path: str
) -> dict[str, Any]:
    """Evaluate the policy at `policy_uri` on the IID, OOD and ablation lists; results go to `results_path` as JSONL.

    stage: 'sft' or 'rl', whose policy this is. Returns scalar metrics. What an interrupted evaluation finished is kept.
    """
    run_context = RunContext.model_validate_json(context)
    section = EvalStage.model_validate_json(config)
    store = RunStore(run_context.run_dir)
    check_fits(manifest_at(policy_uri), env_spec(section.env), section.env, where=policy_uri)
    specs = Splits.read(splits_path).tested
    name = f"eval-{stage}"
    fingerprint = digest(section.env.model_dump_json(), hash_at(policy_uri), *(spec.key for spec in specs))
    kept = store.pull(name) / "results.jsonl"
    finished = StageResult.find(store, name, fingerprint)
    if finished is None:
        from gripline.tracking import stage_run

        with stage_run(run_context, name) as tracker:
            records, outputs = _evaluate(section, policy_uri, specs, store, name)
            shared = shared_scene_tasks(section.env.suite, section.env.tasks)
            policy = summarise_policy(records, shared)
            outputs["iid_success"] = policy.iid.success
            for warning in indifference_warnings(policy, section.eval.indifference_threshold):
                progress.emit(name, "warn", text=warning)
            tracker.log_metrics(policy_metrics(policy) | {f"eval/{key}": value for key, value in outputs.items()})
            tracker.log_artifact(kept)
            tracker.log_table("episodes", [_row(record) for record in records])
        store.push(name)
        finished = StageResult(fingerprint=fingerprint, outputs=outputs)
        finished.write(store, name)
    else:
        progress.emit(name, "note", text="already finished, kept")
    Path(results_path).parent.mkdir(parents=True, exist_ok=True)
    Path(results_path).write_bytes(kept.read_bytes())
    return dict(finished.outputs)


def _row(record: EpisodeRecord) -> dict[str, object]:
    spec = record.spec
    named = {"task": spec.task, "axis": spec.axis, "instruction": spec.instruction, "init_seed": spec.init_seed}
    return named | {"success": record.success, "steps": record.num_steps, "error": record.error, "key": spec.key}


def _evaluate(
    section: EvalStage, policy_uri: str, specs: list[EpisodeSpec], store: RunStore, name: str
) -> tuple[list[EpisodeRecord], dict[str, float]]:
    started = time.perf_counter()
    writer = ResultsWriter(store.local / name / "results.jsonl")
    todo = writer.missing(specs)
    if len(todo) < len(specs):
        progress.emit(name, "note", text=f"{len(specs) - len(todo)} of {len(specs)} episodes kept from before")
    try:
        if todo:
            _run_episodes(section, policy_uri, todo, writer, store, name, len(specs))
        records = writer.finish(specs)
    finally:
        writer.close()
    return records, {
        "episodes": len(records),
        "errors": sum(bool(record.error) for record in records),
        "env_steps": sum(record.num_steps for record in records),
        "seconds": time.perf_counter() - started,
    }


def _run_episodes(
    section: EvalStage,
    policy_uri: str,
    todo: list[EpisodeSpec],
    writer: ResultsWriter,
    store: RunStore,
    name: str,
    total: int,
) -> None:
    from gripline.rollout.actors import Decoding
    from gripline.rollout.cluster import ray_cluster
    from gripline.rollout.engine import standard_engine

    progress.emit(name, "note", text="starting Ray actors")
    seen: list[EpisodeRecord] = []
    pushed_at = time.monotonic()
    with ray_cluster(section.rollout), standard_engine(section.env, policy_uri, section.rollout) as engine:
        for episode in engine.run(todo, Decoding(greedy=True)):
            writer.append(episode.record)
            seen.append(episode.record)
            iid = [record.success for record in seen if record.spec.axis == "iid" and not record.error]
            done = total - len(todo) + len(seen)
            shown = {"iid_success": sum(iid) / max(len(iid), 1)}
            progress.emit(name, "advance", done=done, total=total, metrics=shown)
            if stopping.requested() or time.monotonic() - pushed_at >= PUSH_EVERY_S:
                store.push(name)
                pushed_at = time.monotonic()
                stopping.check()
    failed = [record for record in seen if record.error]
    if len(failed) == len(seen):
        raise UserError(name, "", f"every simulator failed: {failed[0].error}", "see `gripline doctor`")

"""The last stage: compare both policies on the same episodes, write report and summary, promote if every rule holds."""

import os
import time
from pathlib import Path
from typing import Any

from gripline import progress
from gripline.champion import LIST_TAG, SUCCESS_TAG
from gripline.checkpoint import hash_at
from gripline.draws import draws
from gripline.envs.suites import env_spec, shared_scene_tasks
from gripline.metrics import read_metrics
from gripline.results import read_results
from gripline.splits import Splits
from gripline.stages import PromoteStage, RunContext
from gripline.store import RunStore, StageResult, digest
from gripline.summary import RunFacts, Seconds, Summary, summarise, write_summary
from gripline.types import EpisodeRecord

SUMMARY_FILE = "summary.json"
REPORT_FILE = "report.html"


def run(  # noqa: PLR0913  a pipeline step's ports are its arguments
    *,
    context: str,
    config: str,
    splits_path: str,
    sft_results_path: str,
    rl_results_path: str,
    sft_uri: str,
    rl_uri: str,
    report_path: str,
    markdown_path: str,
) -> dict[str, Any]:
    """Write `summary.json`, `report.html` and the videos into the run directory; register the policy if it is promoted.

    report_path, markdown_path: where the pipeline wants its copies. Returns the headline numbers.
    """
    run_context = RunContext.model_validate_json(context)
    stage = PromoteStage.model_validate_json(config)
    store = RunStore(run_context.run_dir)
    specs = draws(Splits.read(splits_path).tested, stage.eval)
    sft_records, rl_records = read_results(sft_results_path, specs), read_results(rl_results_path, specs)
    summary = summarise(
        sft_records,
        rl_records,
        facts=_facts(run_context, store),
        promote=stage.promote,
        indifference_threshold=stage.eval.indifference_threshold,
        shared_scene_tasks=shared_scene_tasks(stage.env.suite, stage.env.tasks),
    )
    summary = summary.model_copy(update={"warnings": (*summary.warnings, *_rl_warnings(store))})
    from gripline.tracking import stage_run

    with stage_run(run_context, "promote") as tracker:
        _report(stage, run_context, store, summary, sft_records, rl_records, tracker)
        for source, target in ((REPORT_FILE, report_path), ("report.md", markdown_path)):
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(target).write_bytes((store.local / source).read_bytes())
        _log_headline(tracker, summary, rl_uri, run_context)
        if summary.promoted:
            tags = {"gripline.run_name": run_context.run_name, "gripline.sft_hash": hash_at(sft_uri)}
            tracker.register_policy(
                stage.promote.registered_name,
                rl_uri,
                alias="champion",
                tags=tags | _measured(summary, rl_records),
                over_better=stage.promote.replace_better_champion,
            )
        tracker.end_parent()
    write_summary(store.local / SUMMARY_FILE, summary)
    store.push(SUMMARY_FILE)
    progress.emit("promote", "note", text="; ".join(summary.reasons))
    outputs = {
        "sft_iid": summary.sft.iid.success,
        "rl_iid": summary.rl.iid.success,
        "gain": summary.paired.iid.difference,
        "p": summary.paired.iid.p,
        "promoted": int(summary.promoted),
    }
    return dict(StageResult(fingerprint=digest(config, sft_uri, rl_uri), outputs=outputs).write(store, "promote"))


def _facts(context: RunContext, store: RunStore) -> RunFacts:
    """What the stages left behind. The front end of a local run corrects the total and adds the peak of memory."""
    spent = {name: _outputs(store, name) for name in ("sft", "eval-sft", "rl", "eval-rl")}
    seconds = {name: float(outputs["seconds"]) if outputs else 0.0 for name, outputs in spent.items()}
    seconds["demos"] = float(spent["sft"]["demos_seconds"]) if spent["sft"] else 0.0
    return RunFacts(
        profile=context.profile_name,
        seed=context.seed,
        seconds=Seconds(
            demos=seconds["demos"],
            sft=seconds["sft"],
            rl=seconds["rl"],
            eval=seconds["eval-sft"] + seconds["eval-rl"],
            total=sum(seconds.values()),
        ),
        peak_memory_mb=0.0,
        env_steps=int(spent["rl"]["env_steps"]),
        mlflow_run_id=context.parent_run_id,
        split_hashes=context.split_hashes,
        episodes_per_s={
            policy: float(outputs["episodes_per_s"])
            for policy in ("sft", "rl")
            if "episodes_per_s" in (outputs := spent[f"eval-{policy}"])
        },
    )


def _outputs(store: RunStore, name: str) -> dict[str, str | float | int]:
    path = store.pull(f"{name}/stage.json")
    return StageResult.model_validate_json(path.read_text(encoding="utf-8")).outputs if path.exists() else {}


def _rl_warnings(store: RunStore) -> list[str]:
    """Where RL made the policy worse by its own greedy validation, what was handed on is not what RL ended with."""
    best = _outputs(store, "rl")
    curve = [row["val/success"] for row in read_metrics(store.pull("rl/metrics.jsonl")) if "val/success" in row]
    if not best or not curve or int(best["best_iteration"]) > 0:
        return []
    told = f"{float(best['validation_success']):.3f} before RL, then at most {max(curve):.3f}, at last {curve[-1]:.3f}"
    return [f"RL: greedy validation fell below SFT's and stayed there ({told}); SFT's own weights were handed on"]


def _measured(summary: Summary, rl_records: list[EpisodeRecord]) -> dict[str, str]:
    """By which a later champion is compared with this one."""
    iid = [record.spec.key for record in rl_records if record.spec.split == "iid" and record.spec.axis == "iid"]
    return {LIST_TAG: digest(*iid)[:16], SUCCESS_TAG: f"{summary.rl.iid.success:.6f}"}


def _report(
    stage: PromoteStage,
    context: RunContext,
    store: RunStore,
    summary: Summary,
    sft_records: list[EpisodeRecord],
    rl_records: list[EpisodeRecord],
    tracker: Any,
) -> None:
    from components.eval.report import ReportData, write_report
    from components.eval.strips import choose_failures, make_strips
    from components.eval.videos import choose_episodes, make_videos

    started = time.perf_counter()
    choices = choose_episodes(sft_records, rl_records, stage.eval.videos)
    videos = make_videos(stage.env, choices, store.local / "videos", size_px=stage.eval.video_size_px)
    failures = choose_failures(sft_records, rl_records) if stage.eval.videos else []
    data = ReportData(
        run_name=context.run_name,
        summary=summary,
        success_means=env_spec(stage.env).success_means,
        decoding=stage.eval.decoding,
        sft_curve=read_metrics(store.pull("sft/metrics.jsonl")),
        rl_curve=read_metrics(store.pull("rl/metrics.jsonl")),
        sft_records=sft_records,
        rl_records=rl_records,
        strips=make_strips(stage.env, failures),
        videos=videos,
        config=stage.model_dump(mode="json"),
    )
    figures = write_report(data, store.local / REPORT_FILE, store.local / "report.md")
    for name in (REPORT_FILE, "report.md", "videos"):
        store.push(name)
    tracker.log_artifact(store.local / REPORT_FILE, on="parent")
    for video in videos:
        tracker.log_artifact(video.path, folder="videos", on="parent")
    for name, figure in figures.items():
        tracker.log_figure(name, figure, on="parent")
    progress.emit("promote", "note", text=f"report written in {time.perf_counter() - started:.1f} s")


def _log_headline(tracker: Any, summary: Summary, rl_uri: str, context: RunContext) -> None:
    from gripline import tables

    tracker.log_metrics(tables.final_metrics(summary), on="parent")
    tracker.log_note(tables.markdown(summary), on="parent")
    tags = {
        "gripline.promoted": str(summary.promoted).lower(),
        "gripline.policy_hash": hash_at(rl_uri),
        "gripline.run_dir": context.run_dir if "://" in context.run_dir else os.path.abspath(context.run_dir),
    }
    tracker.set_tags(tags, on="parent")

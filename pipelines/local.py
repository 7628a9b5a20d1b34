"""Run the graph on this machine: one child process for the graph, a display here, nothing left behind at the end."""

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from gripline import progress
from gripline.config import RolloutConfig
from gripline.errors import UserError
from gripline.inputs import RunInputs
from gripline.profiles import dump
from gripline.stages import CONTEXT_FILE, RunContext
from pipelines import events, processes
from pipelines.display import Display
from pipelines.graph_process import POST_TRAINING, GraphJob
from pipelines.run_folder import RunFolder, claim
from pipelines.surroundings import ENVIRONMENT, Interrupted, scratch_folder, signals_raise

if TYPE_CHECKING:
    from gripline.summary import Summary

STAGES = ("plan", "demos", "sft", "eval-sft", "gate", "rl", "eval-rl", "promote")
PROGRESS_FILE = "progress.jsonl"
LOG_FILE = "log.txt"
REPORT_FILE = "report.html"
DRAW_EVERY_S = 0.2
OUR_FAULT = 1


def run_local(
    inputs: RunInputs, out: Path | None, *, pipeline: str = POST_TRAINING, stages: Sequence[str] = STAGES
) -> int:
    """Run or continue. Returns 0, 1 when a step broke, 128 + n after signal n.

    Raises UserError for what the user can mend.
    """
    console = Console()
    with signals_raise(), claim(inputs, out) as folder:
        console.print(f"{'continuing' if folder.continued else 'running in'} {_shown(folder.path)}", highlight=False)
        display = Display(console, stages)
        meter = processes.MemoryMeter()
        try:
            with _attempt(folder, meter), display:
                exit_code = _run_graph(folder, inputs, pipeline, display, meter)
        except Interrupted as interrupt:
            processes.stop_descendants()
            _end_tracking(folder, "KILLED")
            again = f"gripline run … --out {_shown(folder.path)}"
            print(f"gripline: interrupted, nothing is left running; continue with: {again}", file=sys.stderr)
            return 128 + interrupt.number
        if exit_code == 0:
            _finish(folder, console)
            return 0
        _end_tracking(folder, "FAILED")
        return _explain_failure(folder, display, exit_code)


def _run_graph(
    folder: RunFolder, inputs: RunInputs, pipeline: str, display: Display, meter: processes.MemoryMeter
) -> int:
    """Start the child, draw until it ends, stop whatever it left. Returns its exit code."""
    arguments: dict[str, str | int] = {
        "profile": dump(inputs.profile),
        "checkpoint_uri": inputs.checkpoint_uri,
        "store_uri": str(folder.path.parent),
        "run_name": folder.path.name,
    }
    news = events.EventFile(folder.path / PROGRESS_FILE)
    processes.adopt_orphans()
    with scratch_folder() as scratch, open(folder.path / LOG_FILE, "ab") as log:
        environment = ENVIRONMENT | os.environ | {"TMPDIR": scratch}
        environment[progress.FILE_VARIABLE] = str(folder.path / PROGRESS_FILE)
        child = subprocess.Popen(
            [sys.executable, "-m", "pipelines.graph_process"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches us alone, who stop everything in order
            pass_fds=(folder.lock_descriptor,),  # and the folder stays locked until the child is gone too
        )
        try:
            artifacts = folder.path / "steps"
            job = GraphJob(
                pipeline=pipeline,
                arguments=arguments,
                artifacts=artifacts,
                shared_ray=_shared_ray(inputs, pipeline),
                scratch=Path(scratch),
            )
            assert child.stdin is not None
            child.stdin.write(job.model_dump_json().encode())
            child.stdin.close()
            while child.poll() is None:
                display.feed(news.read_new())
                display.refresh()
                meter.sample()
                time.sleep(DRAW_EVERY_S)
            display.feed(news.read_new())
            display.refresh()
        finally:
            processes.stop_descendants()
        return child.returncode


def _shared_ray(inputs: RunInputs, pipeline: str) -> RolloutConfig | None:
    """What the steps share a Ray cluster for; None where the user has one, or no step needs it."""
    if pipeline != POST_TRAINING or "RAY_ADDRESS" in os.environ:
        return None
    return inputs.profile.rollout


@contextmanager
def _attempt(folder: RunFolder, meter: processes.MemoryMeter) -> Iterator[None]:
    """Mark beginning and end in the progress file, from which seconds and memory of all attempts are added up."""
    path = folder.path / PROGRESS_FILE
    events.append(path, events.Event(time_s=time.time(), stage=events.RUN, event="start"))
    try:
        yield
    finally:
        peak = {"peak_memory_mb": meter.peak_mb}
        events.append(path, events.Event(time_s=time.time(), stage=events.RUN, event="end", metrics=peak))


def _finish(folder: RunFolder, console: Console) -> None:
    """Complete summary.json with what only the front end knows, and show the result."""
    from gripline.tables import final_metrics, further_lines, headline, render_table
    from gripline.tracking import log_costs

    summary, context = _complete_summary(folder), _context(folder)
    console.print(render_table(summary))
    console.print(headline(summary), highlight=False)
    console.print("promoted" if summary.promoted else "not promoted", style="bold")
    for reason in summary.reasons:
        console.print(f"  {reason}", highlight=False)
    for warning in summary.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)
    for line in further_lines(summary):
        console.print(line, highlight=False)
    costs = f"{summary.seconds.total:.0f} s, peak memory {summary.peak_memory_mb / 1024:.1f} GB"
    for label, text in (("costs", costs), ("report", _shown(folder.path / REPORT_FILE))):
        console.print(f"{label + ':':<8}{text}", highlight=False, soft_wrap=True)
    measured = {name: value for name, value in final_metrics(summary).items() if name.startswith("run/")}
    page = ""
    try:
        page = log_costs(context.tracking_uri, context.parent_run_id, measured)
    except UserError as error:  # the result is there and shown; a tracker that is gone by now takes nothing away
        print(f"gripline: warning: {error.line}", file=sys.stderr)
    console.print(f"MLflow: {_mlflow_address(context.tracking_uri, page)}", highlight=False, soft_wrap=True)


def _complete_summary(folder: RunFolder) -> "Summary":
    from gripline.summary import Seconds, read_summary, write_summary

    history = events.read_all(folder.path / PROGRESS_FILE)
    took = events.stage_seconds(history)
    seconds = Seconds(
        demos=took.get("demos", 0.0),
        sft=took.get("sft", 0.0),
        rl=took.get("rl", 0.0),
        eval=took.get("eval-sft", 0.0) + took.get("eval-rl", 0.0),
        total=took[events.RUN],
    )
    peak_mb = max(event.metrics.get("peak_memory_mb", 0.0) for event in history if event.stage == events.RUN)
    summary = read_summary(folder.summary).model_copy(update={"seconds": seconds, "peak_memory_mb": peak_mb})
    write_summary(folder.summary, summary)
    return summary


def _explain_failure(folder: RunFolder, display: Display, exit_code: int) -> int:
    """Raise the step's own UserError, or tell that it broke."""
    log, failure = _shown(folder.path / LOG_FILE), display.failure
    if failure is not None and failure.event == "error":
        raise UserError("", "", failure.text, "")
    # Libraries have errors of their own for a full disk, and on a quite full one no event can be written any more.
    if (failure and os.strerror(errno.ENOSPC) in failure.text) or shutil.disk_usage(folder.path).free < 2**20:
        raise UserError(str(folder.path), "", "the disk is full", "free space and start the same run again")
    if failure is None:
        stage = display.running or "plan"
        problem = f"stage {stage!r} ended without a word (exit code {exit_code}): was it killed, for want of memory?"
    else:
        problem = f"stage {failure.stage!r} broke: {failure.text}"
    print(f"gripline: {problem}; the log is {log}; if this is our fault, please report it", file=sys.stderr)
    return OUR_FAULT


def _end_tracking(folder: RunFolder, status: Literal["FAILED", "KILLED"]) -> None:
    """The pipeline's MLflow run must not look as if it went on. Only where `plan` got as far as to make it."""
    if not (folder.path / CONTEXT_FILE).exists():
        return
    from gripline.tracking import end_parent

    context = _context(folder)
    try:
        end_parent(context.tracking_uri, context.parent_run_id, status)
    except UserError as error:
        print(f"gripline: warning: {error.line}", file=sys.stderr)


def _context(folder: RunFolder) -> RunContext:
    return RunContext.model_validate_json((folder.path / CONTEXT_FILE).read_text(encoding="utf-8"))


def _mlflow_address(tracking_uri: str, page: str) -> str:
    """Where the runs can be looked at; of a local file, first the command that shows it."""
    if tracking_uri.startswith(("http://", "https://")):
        return tracking_uri.rstrip("/") + page
    beside = Path(sys.executable).with_name("mlflow")
    command = "mlflow" if shutil.which("mlflow") == str(beside) else _shown(beside)
    return f"{command} ui --workers 1 --backend-store-uri {tracking_uri}\n        then http://127.0.0.1:5000{page}"


def _shown(path: Path) -> str:
    """Relative to where the user stands, if it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

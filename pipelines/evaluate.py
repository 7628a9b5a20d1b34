"""`gripline evaluate`: a checkpoint on a profile's lists, without a pipeline; whole, in shards, or merged from shards.

The folder is that of a run which has nothing but an evaluation: `profile.yaml`, `checkpoint.txt`, `eval-rl/` or
`eval-sft/` (whose policy it is), and what shards leave beside it.
"""

import fcntl
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.eval.evaluate import EvalJob, evaluate, evaluate_shard, find, merge
from gripline import progress
from gripline.checkpoint import manifest_at
from gripline.comparison import is_total, row_label
from gripline.config import Profile
from gripline.draws import draws
from gripline.envs.suites import shared_scene_tasks
from gripline.errors import UserError
from gripline.inputs import CHECKPOINT_FILE, PROFILE_FILE, RunInputs
from gripline.results import read_results
from gripline.shards import RESULTS_FILE, Shard, found
from gripline.splits import Splits, build_splits
from gripline.stages import CONTEXT_FILE, EvalStage, RunContext
from gripline.store import RunStore, is_local
from gripline.summary import Rate, summarise_policy
from gripline.tables import failures_text, named_rates, rate_text
from gripline.tracking import Status, default_tracking_uri, end_parent, ensure_parent
from pipelines import events, processes
from pipelines.display import Display
from pipelines.run_folder import ROOT
from pipelines.surroundings import ENVIRONMENT, Interrupted, scratch_folder, signals_raise

LOG_FILE = "log.txt"
PROGRESS_FILE = "progress.jsonl"
DRAW_EVERY_S = 0.2
STAGES = ("eval-rl", "eval-sft")


def run(inputs: RunInputs, splits: Splits, out: str, shard: Shard | None) -> int:
    """Evaluate, or continue, and show the result. Returns 0, or 128 + n after signal n.

    splits: of the profile. out: folder or URI; empty: one whose name says which evaluation it is. Raises UserError.
    """
    policy = "rl" if manifest_at(inputs.checkpoint_uri).provenance.stage == "rl" else "sft"
    job = _job(inputs, splits, out, f"eval-{policy}")
    tracking = _tracking_uri(job, inputs.profile)
    console = Console(file=sys.stdout)
    with signals_raise(), _claimed(job, inputs, shard):
        console.print(f"evaluation in {job.store.uri}", highlight=False, soft_wrap=True)
        try:
            with _tracked(job, inputs.profile, splits, tracking) as context, _attended(job, console):
                outputs, waiting = _evaluate(job, context, shard)
        except Interrupted as interrupt:
            processes.stop_descendants()
            print("gripline: interrupted, nothing is left running; the same command continues", file=sys.stderr)
            return 128 + interrupt.number
    if waiting:
        told = f"shard {shard} is done, {_speed(outputs)}; still to come: {', '.join(map(str, waiting))}"
        console.print(told, highlight=False, soft_wrap=True)
    else:
        show(job, outputs, console)
    return 0


def merge_folders(folders: Sequence[str], out: str) -> int:
    """Make the shards in these folders one evaluation, in `out` or the first of them, and show it. Returns 0.

    Raises UserError where a shard is missing, unfinished, there twice, of another evaluation or damaged.
    """
    stores = [RunStore(folder) for folder in folders]
    parts = {stage: [part for store in stores for part in found(store, stage)] for stage in STAGES}
    stage = next((stage for stage, own in parts.items() if own), "")
    for store in stores:
        if not stage or not any(part.store is store for part in parts[stage]):
            next_step = "name folders of `gripline evaluate --shard I/N`"
            raise UserError(store.uri, "--merge", "holds no shard of this evaluation", next_step)
    inputs = RunInputs.read(stores[0])
    splits = build_splits(inputs.profile)
    job = _job(inputs, splits, out or folders[0], stage)
    tracking = _tracking_uri(job, inputs.profile)
    console = Console(file=sys.stdout)
    with (
        _claimed(job, inputs, None),
        _tracked(job, inputs.profile, splits, tracking) as context,
        _attended(job, console),
    ):
        outputs = merge(job, parts[stage], context)
    show(job, outputs, console)
    return 0


def show(job: EvalJob, outputs: Mapping[str, Any], console: Console) -> None:
    """The finished evaluation's table, and where it is."""
    env = job.section.env
    records = read_results(job.store.local / job.stage / RESULTS_FILE, job.specs)
    policy = summarise_policy(records, shared_scene_tasks(env.suite, env.tasks))
    console.print(success_table(named_rates(policy)))
    if policy.iid_failures:
        console.print(f"IID failures: {failures_text(policy.iid_failures)}", highlight=False)
    if outputs["errors"]:
        text = f"warning: {outputs['errors']} episodes were lost to simulator errors; the same command runs them again"
        console.print(text, style="yellow", highlight=False)
    for label, text in (("speed", _speed(outputs)), ("results", f"{job.store.uri}/{job.stage}/{RESULTS_FILE}")):
        console.print(f"{label + ':':<9}{text}", highlight=False, soft_wrap=True)


def _speed(outputs: Mapping[str, Any]) -> str:
    """Of the part that was run last; merged shards have only a sum."""
    if "episodes_per_s" not in outputs:
        return f"{outputs['seconds']:.0f} s in all shards together"
    return f"{outputs['episodes_per_s']:.2f} episodes/s, {outputs['env_steps_per_s']:.0f} control steps/s"


def success_table(rates: Mapping[str, Rate]) -> Table:
    """Success of one policy, as `gripline.tables.named_rates` names it; 80 columns wide."""
    title = Text("Success in % [95 % interval]", "italic")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    table.add_column("split and task", overflow="fold")
    for name in ("n", "success", "errors"):
        table.add_column(name, justify="right", no_wrap=True)
    kinds = ("iid", "task/", "ood/", "ablation/")
    for name in (name for kind in kinds for name in rates if name.startswith(kind) and name.count("/") < 2):
        rate, total = rates[name], is_total(name)
        label = row_label(name) if total else f"  {row_label(name)}"
        cells = (label, str(rate.n), rate_text(rate), str(rate.errors or ""))
        table.add_row(*(Text(cell, "bold" if total else "dim") for cell in cells))
    return table


def _job(inputs: RunInputs, splits: Splits, out: str, stage: str) -> EvalJob:
    profile, checkpoint = inputs.profile, inputs.checkpoint_uri
    section = EvalStage(env=profile.env, rollout=profile.rollout, eval=profile.eval, seed=profile.seed)
    specs = draws(splits.tested, profile.eval)
    if not out:
        name = EvalJob(section, checkpoint, specs, RunStore("."), stage).fingerprint[:8]
        out = str(ROOT / f"{profile.name}-eval-{name}")
    return EvalJob(section, checkpoint, specs, RunStore(out), stage)


def _evaluate(
    job: EvalJob, context: Callable[[], RunContext], shard: Shard | None
) -> tuple[Mapping[str, Any], list[Shard]]:
    """Run it. Returns scalar metrics, and which shards have yet to be brought by others."""
    if shard is None:
        return evaluate(job, context), []
    finished = find(job)
    if finished is not None:
        return finished.outputs, []
    outputs = evaluate_shard(job, shard)
    with _alone(job, f"{job.stage}-merge", wait=True):  # another shard may end at this moment
        parts = [part for part in found(job.store, job.stage) if part.shard.count == shard.count]
        done = {part.shard for part in parts if part.finished}
        waiting = [each for each in shard.all if each not in done]
        if waiting:
            return outputs, waiting
        finished = find(job)
        return (merge(job, parts, context) if finished is None else finished.outputs), []


def _tracking_uri(job: EvalJob, profile: Profile) -> str:
    parent = job.store.local.parent
    uri = default_tracking_uri(profile.tracking.uri, parent)
    if not is_local(job.store.uri) and uri.startswith("sqlite:"):
        problem = "is empty, and --out is no folder that an SQLite file could lie beside"
        raise UserError(
            "gripline evaluate", "tracking.uri", problem, "name an MLflow server, or set MLFLOW_TRACKING_URI"
        )
    return uri


@contextmanager
def _tracked(job: EvalJob, profile: Profile, splits: Splits, tracking_uri: str) -> Iterator[Callable[[], RunContext]]:
    """Makes or finds the parent run in MLflow when it is first asked for, and ends it.

    Raises UserError where MLflow cannot be used; once the evaluation is done, that is only a warning.
    """
    opened: list[RunContext] = []

    def context() -> RunContext:
        opened.append(_context(job, profile, splits.hashes, tracking_uri))
        return opened[0]

    status: Status = "FAILED"
    try:
        yield context
        status = "FINISHED"
    except Interrupted:
        status = "KILLED"
        raise
    finally:
        for each in opened:
            try:
                end_parent(each.tracking_uri, each.parent_run_id, status)
            except UserError as error:
                print(f"gripline: warning: {error.line}", file=sys.stderr)


def _context(job: EvalJob, profile: Profile, split_hashes: dict[str, str], tracking_uri: str) -> RunContext:
    experiment, run_name = profile.tracking.experiment, job.store.uri.rpartition("/")[2]
    tags = {"gripline.profile": profile.name, "gripline.checkpoint_uri": job.policy_uri}
    tags |= {f"gripline.split.{name}": value[:12] for name, value in split_hashes.items()}
    run_id = ensure_parent(tracking_uri, experiment, run_name, tags=tags, params=profile.model_dump(mode="json"))
    return RunContext(
        run_name=run_name,
        run_dir=job.store.uri,
        tracking_uri=tracking_uri,
        experiment=experiment,
        parent_run_id=run_id,
        profile_name=profile.name,
        seed=profile.seed,
        split_hashes=split_hashes,
    )


@contextmanager
def _claimed(job: EvalJob, inputs: RunInputs, shard: Shard | None) -> Iterator[None]:
    """Leave the evaluation's inputs in the folder, and keep other processes from the same work.

    Raises UserError when the folder is in use, of another evaluation, of a pipeline run, or of others.
    """
    store, other = job.store, "choose another --out"
    with _alone(job, "claim", wait=True):
        for name in (CHECKPOINT_FILE, PROFILE_FILE):
            store.pull(name)
        if store.pull(CONTEXT_FILE).exists():
            raise UserError(store.uri, "--out", "is the folder of a pipeline run", other)
        strangers = sorted(entry.name for entry in store.local.iterdir() if not entry.name.startswith("."))
        if strangers and PROFILE_FILE not in strangers:
            raise UserError(store.uri, "--out", f"is not an evaluation's folder: it holds {strangers[0]}", other)
        difference = inputs.difference(store.local)
        if difference:
            raise UserError(store.uri, "--out", f"is of another evaluation: {difference}", other)
        inputs.write(store.local)
        for name in (CHECKPOINT_FILE, PROFILE_FILE):
            store.push(name)
    with _alone(job, job.stage if shard is None else shard.folder(job.stage).replace("/", "-"), wait=False):
        yield


@contextmanager
def _alone(job: EvalJob, what: str, *, wait: bool) -> Iterator[None]:
    """No other process of this machine is here with the same `what`. Raises UserError where it shall not wait."""
    try:
        job.store.local.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(job.store.local / f".{what}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(job.store.uri, "--out", f"cannot be used: {error.strerror}", "choose another") from error
    try:
        _lock(descriptor, job.store.uri, wait=wait)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, where: str, *, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        next_step = "wait for it, or choose another --out or --shard"
        raise UserError(where, "--out", "another process is at this evaluation", next_step) from error


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for as long as the block runs."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ |= values
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
        os.environ |= before


@contextmanager
def _attended(job: EvalJob, console: Console) -> Iterator[None]:
    """Progress is drawn while the body works; what it prints goes to the folder's log."""
    done, display = threading.Event(), Display(console, [job.stage])
    processes.adopt_orphans()
    with scratch_folder() as scratch, open(job.store.local / LOG_FILE, "a", encoding="utf-8") as log, display:
        path = Path(scratch, PROGRESS_FILE)
        own = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
        own |= {"TMPDIR": scratch, progress.FILE_VARIABLE: str(path)}
        drawing = threading.Thread(target=_draw, args=(display, path, done), daemon=True)
        drawing.start()
        try:
            with _variables(own), redirect_stdout(log), redirect_stderr(log):
                progress.emit(job.stage, "start")
                yield
                progress.emit(job.stage, "end")
        finally:
            done.set()
            drawing.join()


def _draw(display: Display, path: Path, done: threading.Event) -> None:
    """Draw the progress in a file until `done`, and once more then."""
    news, ended = events.EventFile(path), False
    while not ended:
        ended = done.wait(DRAW_EVERY_S)
        display.feed(news.read_new())
        display.refresh()

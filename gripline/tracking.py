"""MLflow tracking, and nothing else that logs: one parent run per pipeline run, one child run per stage.

A stage never imports MLflow and never waits for it. It appends what it has to say to a spool file under
`<run_dir>/mlflow-spool/`, and a process of its own (`gripline.delivery`) carries it to the tracking server in batches.
So a slow server cannot slow a rollout, a server that goes away loses nothing (what is left is delivered by the next
stage or a rerun), and the seconds that MLflow takes to import pass on another core.

A tracker that fails at its start stops the run with one line; one that fails later warns once.
"""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from gripline import credentials, progress, stopping
from gripline.errors import UserError
from gripline.stages import RunContext
from gripline.store import RunStore, is_local, local_path

SPOOL_FOLDER = "mlflow-spool"
FLUSH_TIMEOUT_S = 600.0
INTERRUPTED_TIMEOUT_S = 15.0
Run = Literal["stage", "parent"]
Status = Literal["FINISHED", "FAILED", "KILLED", "RUNNING"]
"""RUNNING: left as it is, to another process that continues it."""
TAGS_VARIABLE = "GRIPLINE_TAGS"
"""Names a JSON object of further tags of the stage's run: who runs the stage, such as a RayJob's attempt."""


def default_tracking_uri(configured: str, runs_dir: str | Path) -> str:
    """The configured URI, else MLFLOW_TRACKING_URI (without a password), else an SQLite file beside the run folders."""
    uri = configured or credentials.redacted(credentials.from_environment())
    return uri or f"sqlite:///{Path(runs_dir).resolve() / 'mlflow.db'}"


def ensure_parent(
    tracking_uri: str, experiment: str, run_name: str, *, tags: Mapping[str, str], params: Mapping[str, object]
) -> str:
    """The id of the parent run: found by its name so that a rerun continues it, or made.

    MLFLOW_RUN_ID, where set, names the parent instead; in a pipeline task to which Kubeflow's MLflow plugin gave a run,
    the parent is the plugin's. Such runs are used and never ended. Raises UserError when MLflow cannot be used.
    """
    from gripline import delivery

    with one_line(tracking_uri):
        client = delivery.connect(tracking_uri)
        return delivery.ensure_parent(client, experiment, run_name, dict(tags), flatten(params))


def end_parent(tracking_uri: str, parent_run_id: str, status: Status) -> None:
    """End the parent run if we made it: for a front end whose pipeline broke. Raises UserError when MLflow is gone."""
    from gripline import delivery

    with one_line(tracking_uri):
        delivery.end_run(delivery.connect(tracking_uri), parent_run_id, status)


def log_costs(tracking_uri: str, parent_run_id: str, metrics: Mapping[str, float]) -> str:
    """Metrics of the parent run that only a front end can measure, after the last stage; returns its page.

    That is the list of all runs, as the part of an address that follows the server's. Raises UserError.
    """
    from gripline import delivery

    with one_line(tracking_uri):
        experiment_id = delivery.log_metrics(delivery.connect(tracking_uri), parent_run_id, dict(metrics))
    return f"/#/experiments/{experiment_id}?workflowType=machine_learning"  # without it, MLflow 3 shows a GenAI page


@contextmanager
def stage_run(context: RunContext, stage: str) -> Iterator["Tracker"]:
    """The stage's child run, made or continued; it ends FINISHED, FAILED after an exception, KILLED after Ctrl-C or a
    request to stop. A superseded attempt leaves it to the one that continues it."""
    tracker = Tracker(context, stage)
    try:
        if TAGS_VARIABLE in os.environ:
            tracker.set_tags(json.loads(os.environ[TAGS_VARIABLE]))
        yield tracker
    except stopping.SupersededError:
        tracker.close("RUNNING")
        raise
    except BaseException as error:
        # Nothing is handled: the run's status must tell how the stage ended, whatever ended it.
        interrupted = isinstance(error, KeyboardInterrupt | stopping.StopRequestedError)
        tracker.close("KILLED" if interrupted else "FAILED")
        raise
    tracker.close("FINISHED")
    tracker.check()


class Tracker:
    """What a stage may log. `on="parent"` means the pipeline's run instead of the stage's own.

    Every method returns at once and raises UserError only if tracking could not even be started.
    """

    def __init__(self, context: RunContext, stage: str) -> None:
        self._stage = stage
        self._store = RunStore(context.run_dir)
        self._spool = _new_spool(self._store, stage)
        self._sink = open(self._spool, "a", encoding="utf-8")  # noqa: SIM115  closed by close()
        # Held until both this process and the delivery are gone, so that no one else takes the file for an orphan.
        fcntl.flock(self._sink, fcntl.LOCK_EX)
        self._run_id = self._refusal = ""
        self._delayed = self._disk_failed = False
        self._answered = threading.Event()
        self._put("start", stage=stage, context=context.model_dump(mode="json"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gripline.delivery", str(self._spool)],
            stdin=subprocess.PIPE,  # closes when this process ends, however it ends
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            pass_fds=(self._sink.fileno(),),
            start_new_session=True,  # Ctrl-C is for the stage, which then says how its run ended
        )
        assert self._process.stdout is not None
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._listener.start()

    @property
    def run_id(self) -> str:
        """The MLflow id of the stage's run. Waits for the connection. Raises UserError when there is none."""
        self._answered.wait()
        self.check()
        return self._run_id

    def log_params(self, params: Mapping[str, object], on: Run = "stage") -> None:
        """Parameters; nested mappings become dotted names such as `sft.lr`."""
        self._put("params", on=on, params=flatten(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0, on: Run = "stage") -> None:
        """Points of curves. A step that a continued run has already is not logged again."""
        values = {name: float(value) for name, value in metrics.items()}
        self._put("metrics", on=on, metrics=values, step=step, time_ms=int(time.time() * 1000))

    def set_tags(self, tags: Mapping[str, str], on: Run = "stage") -> None:
        """Tags: lineage such as checkpoint and data hashes."""
        self._put("tags", on=on, tags=dict(tags))

    def log_note(self, markdown: str, on: Run = "stage") -> None:
        """The description shown on top of the run's page."""
        self._put("tags", on=on, tags={"mlflow.note.content": markdown})

    def log_artifact(self, path: str | Path, folder: str = "", on: Run = "stage") -> None:
        """A file; it must stay where it is until the stage ends."""
        self._put("artifact", on=on, path=str(Path(path).resolve()), folder=folder, temporary=False)

    def log_table(self, name: str, rows: Sequence[Mapping[str, object]], on: Run = "stage") -> None:
        """Rows with equal keys, as `<name>.json`; the run's evaluation tab shows it as a table."""
        columns = list(rows[0]) if rows else []
        table = {"columns": columns, "data": [[row[column] for column in columns] for row in rows]}
        path = self._temporary(f"{name}.json")
        path.write_text(json.dumps(table), encoding="utf-8")
        self._put("table", on=on, path=str(path), folder="", temporary=True)

    def log_figure(self, name: str, figure: Any, on: Run = "stage") -> None:
        """A matplotlib figure, as `plots/<name>.png`."""
        path = self._temporary(f"{name}.png")
        figure.savefig(path, dpi=150, bbox_inches="tight")
        self._put("artifact", on=on, path=str(path), folder="plots", temporary=True)

    def register_policy(
        self, name: str, checkpoint: str, *, alias: str, tags: Mapping[str, str], over_better: bool
    ) -> None:
        """Make the checkpoint (a directory, or a URI that is left where it is) a version of the registered model `name`
        and move `alias` to it, whose former version a tag remembers.

        over_better: also from a version that succeeded more often on the same episodes, by the tags of
        `gripline.champion`; otherwise the alias stays there, with a warning.
        """
        where = str(local_path(checkpoint).resolve()) if is_local(checkpoint) else checkpoint
        entry = {"name": name, "checkpoint": where, "alias": alias, "tags": dict(tags), "over_better": over_better}
        self._put("register", on="stage", **entry)

    def end_parent(self, status: Status = "FINISHED") -> None:
        """End the pipeline's run, if we made it: the last thing that the last stage says."""
        self._put("end", on="parent", status=status)

    def check(self) -> None:
        """Raise UserError if tracking could not be started."""
        if self._refusal:
            raise UserError(*json.loads(self._refusal))

    def close(self, status: Status) -> None:
        """End the stage's run, if we made it, and wait until everything is delivered or given up."""
        self._write({"op": "end", "on": "stage", "status": status})
        self._sink.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        timeout_s = INTERRUPTED_TIMEOUT_S if status in ("KILLED", "RUNNING") else FLUSH_TIMEOUT_S
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._listener.join()
        self._store.push(SPOOL_FOLDER)
        if self._process.returncode not in (0, 2):
            self._warn("not everything reached MLflow")

    def _put(self, op: str, **fields: object) -> None:
        self.check()
        self._write({"op": op, **fields})

    def _write(self, entry: Mapping[str, object]) -> None:
        try:
            self._sink.write(json.dumps(entry) + "\n")
            self._sink.flush()
        except OSError as error:
            if not self._disk_failed:
                self._disk_failed = True
                text = f"tracking is incomplete: {self._spool} cannot be written ({error.strerror})"
                progress.emit(self._stage, "warn", text=text)

    def _listen(self, answers: IO[str]) -> None:
        for line in answers:
            kind, _, text = line.rstrip("\n").partition(" ")
            if kind == "ready":
                self._run_id = text
            elif kind == "refused":
                self._refusal = text
            elif kind == "delayed" and not self._delayed:
                self._delayed = True
                self._warn(f"MLflow does not answer ({text})")
            elif kind == "notice":
                progress.emit(self._stage, "warn", text=text)
            self._answered.set()
        if not self._answered.is_set():
            reason = "the delivery process died at its start"
            self._refusal = json.dumps(
                ["mlflow", "", reason, f"see what `python -m gripline.delivery {self._spool}` says"]
            )
            self._answered.set()

    def _warn(self, text: str) -> None:
        kept = f"kept in {self._store.uri}/{SPOOL_FOLDER} and delivered by the next stage or rerun"
        progress.emit(self._stage, "warn", text=f"{text}; the run goes on, its record is {kept}")

    def _temporary(self, name: str) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self._spool.parent, prefix=f"{self._spool.stem}-"))
        return folder / name


def flatten(params: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Dotted names and texts. Example: `{"sft": {"lr": 0.001, "on": ("a", "b")}}` → `sft.lr: 0.001, sft.on: a, b`.

    What is empty or None is left out.
    """
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            flat[f"{prefix}{name}"] = ", ".join(str(item) for item in value)
        elif value not in ("", None):
            flat[f"{prefix}{name}"] = str(value)
    return flat


def _new_spool(store: RunStore, stage: str) -> Path:
    """A file of its own for each attempt, whose name sorts by time, beside what earlier stages could not deliver."""
    folder = store.pull(SPOOL_FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{time.time_ns()}-{stage}.jsonl"


@contextmanager
def one_line(tracking_uri: str) -> Iterator[None]:
    """Turn what MLflow does not do into a UserError."""
    from gripline import delivery

    try:
        yield
    except delivery.TrackingError as error:
        raise UserError(*error.for_user(tracking_uri)) from error

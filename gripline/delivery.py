"""The process that speaks MLflow: it carries a stage's spool file to the tracking server.

`python -m gripline.delivery SPOOL.jsonl` follows the file until its stage has ended (which closes standard input),
tells the stage `ready RUN_ID`, `refused …`, `delayed …` or `notice …` on standard output, and deletes what it has
delivered. Files that earlier stages left behind are delivered too. How far one is delivered stands beside it in
`<name>.delivered`.
"""

import fcntl
import json
import os
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from gripline.atomic import write_whole
from gripline.champion import FORMER_TAG, reason_to_stay
from gripline.credentials import redacted, with_credentials
from gripline.errors import UserError
from gripline.stages import RunContext

CREATED_BY = "gripline.created_by"
POLL_S = 0.5
RETRY_S = 10.0
NOT_DELIVERED = 3
"""Exit status when the stage ended and MLflow still did not take everything."""
Entry = dict[str, Any]
"""One line of a spool file: `op`, `on` and what the op needs; see `gripline.tracking.Tracker`."""


class TrackingError(Exception):
    """MLflow answered with an error, or not at all; the text is the first line of it."""

    def for_user(self, tracking_uri: str) -> tuple[str, str, str, str]:
        """Arguments of a UserError."""
        next_step = "start the server, correct the URI, or leave tracking.uri empty for a local file"
        return (redacted(tracking_uri), "tracking.uri", f"MLflow cannot be used: {self}", next_step)


def connect(tracking_uri: str) -> Any:
    """An MlflowClient that answers within seconds or raises TrackingError. Imports MLflow (3 s)."""
    with tracking_errors():
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        database = _database_file(tracking_uri)
        if database is not None:
            database.parent.mkdir(parents=True, exist_ok=True)
        import logging

        from mlflow.tracking import MlflowClient

        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        client = MlflowClient(with_credentials(tracking_uri))
        client.search_experiments(max_results=1)
        return client


def ensure_parent(client: Any, experiment: str, run_name: str, tags: dict[str, str], params: dict[str, str]) -> str:
    """See `gripline.tracking.ensure_parent`."""
    with tracking_errors():
        run_id = _given_parent() or _find_or_create(
            client,
            _experiment_id(client, experiment),
            run_name,
            {"gripline.run_name": run_name, "gripline.role": "pipeline"},
        )
        run = client.get_run(run_id)
        _apply_tags(client, run_id, tags)
        _apply_params(client, run, params)
        return str(run_id)


def end_run(client: Any, run_id: str, status: str) -> None:
    """Set a run's final status, if it was made by us: others' runs are theirs to end. RUNNING is none: it goes on."""
    with tracking_errors():
        if status != "RUNNING" and CREATED_BY in client.get_run(run_id).data.tags:
            client.set_terminated(run_id, status)


def log_metrics(client: Any, run_id: str, metrics: dict[str, float]) -> str:
    """Numbers that are known only after the last stage; they replace what it logged under the same names.

    Returns the id of the run's experiment.
    """
    from mlflow.entities import Metric

    time_ms = int(time.time() * 1000)
    with tracking_errors():
        client.log_batch(run_id, metrics=[Metric(name, value, time_ms, 0) for name, value in metrics.items()])
        return str(client.get_run(run_id).info.experiment_id)


def ensure_child(client: Any, context: RunContext, stage: str) -> tuple[str, bool]:
    """The stage's run and whether it is continued: the one that the pipeline gave to this task, or a child of ours."""
    with tracking_errors():
        identity = {"gripline.run_name": context.run_name, "gripline.stage": stage}
        known = {"gripline.profile": context.profile_name, "gripline.seed": str(context.seed)}
        known |= {f"gripline.split.{name}": value[:12] for name, value in context.split_hashes.items()}
        if _in_plugin_task():
            run_id = os.environ["MLFLOW_RUN_ID"]
            _apply_tags(client, run_id, identity | known)
            return run_id, True
        parent = client.get_run(context.parent_run_id)
        identity |= {"mlflow.parentRunId": context.parent_run_id}
        run_id = _find_or_create(client, parent.info.experiment_id, stage, identity, known)
        return run_id, bool(client.get_run(run_id).data.metrics)


class Target:
    """The two runs that one spool file speaks of."""

    def __init__(self, client: Any, start: Entry) -> None:
        context = RunContext.model_validate(start["context"])
        self._client = client
        self.stage_run_id, self._continued = ensure_child(client, context, start["stage"])
        self._ids = {"stage": self.stage_run_id, "parent": context.parent_run_id}
        self._logged: dict[tuple[str, str], set[int]] = {}

    def expect_repeats(self) -> None:
        """The next entries may have been delivered in part already."""
        self._continued = True
        self._logged = {}

    def apply(self, entries: list[Entry]) -> None:
        """Deliver entries in order, neighbouring metrics in one batch. Raises TrackingError."""
        with tracking_errors():
            for (op, on), batch in groupby(entries, key=lambda entry: (entry["op"], entry["on"])):
                if op == "metrics":
                    self._metrics(self._ids[on], list(batch), may_repeat=on == "parent" or self._continued)
                else:
                    for entry in batch:
                        self._one(entry, self._ids[on])

    def _one(self, entry: Entry, run_id: str) -> None:
        match entry["op"]:
            case "params":
                _apply_params(self._client, self._client.get_run(run_id), entry["params"])
            case "tags":
                _apply_tags(self._client, run_id, entry["tags"])
            case "artifact" | "table":
                self._artifact(entry, run_id)
            case "register":
                self._register(entry, run_id)
            case "end":
                end_run(self._client, run_id, entry["status"])

    def _metrics(self, run_id: str, entries: list[Entry], may_repeat: bool) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, entry["time_ms"], entry["step"])
            for entry in entries
            for name, value in entry["metrics"].items()
            if not (may_repeat and self._is_logged(run_id, name, entry["step"]))
        ]
        for first in range(0, len(metrics), 1000):
            self._client.log_batch(run_id, metrics=metrics[first : first + 1000])

    def _is_logged(self, run_id: str, name: str, step: int) -> bool:
        """Whether an earlier attempt logged this step; a resumed stage computes the same value again."""
        if (run_id, name) not in self._logged:
            history = self._client.get_metric_history(run_id, name)
            self._logged[run_id, name] = {metric.step for metric in history}
        return step in self._logged[run_id, name]

    def _artifact(self, entry: Entry, run_id: str) -> None:
        path = Path(entry["path"])
        if not path.exists():  # gone since it was announced: an old spool file of a run directory that was tidied up
            return
        self._client.log_artifact(run_id, str(path), entry["folder"] or None)
        if entry["op"] == "table":
            tags = self._client.get_run(run_id).data.tags
            tables = json.loads(tags["mlflow.loggedArtifacts"]) if "mlflow.loggedArtifacts" in tags else []
            shown = {"path": path.name, "type": "table"}
            if shown not in tables:
                self._client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([*tables, shown]))
        if entry["temporary"]:
            shutil.rmtree(path.parent, ignore_errors=True)

    def _register(self, entry: Entry, run_id: str) -> None:
        from mlflow.exceptions import MlflowException

        name, source = entry["name"], entry["checkpoint"]
        with suppress(MlflowException):  # it exists already; anything else shows in the next call
            self._client.create_registered_model(name)
        known = self._client.search_model_versions(f"name = '{name}'")
        version = next((known_one.version for known_one in known if known_one.run_id == run_id), None)
        if version is None:
            if "://" not in source:
                self._client.log_artifacts(run_id, source, "policy")
                source = f"{self._client.get_run(run_id).info.artifact_uri}/policy"
            version = self._client.create_model_version(name, source, run_id, tags=entry["tags"]).version
        self._move_alias(entry, str(version))

    def _move_alias(self, entry: Entry, version: str) -> None:
        name, alias = entry["name"], entry["alias"]
        aliases = {known: str(at) for known, at in self._client.get_registered_model(name).aliases.items()}
        if alias in aliases and aliases[alias] != version:
            former = aliases[alias]
            tags = self._client.get_model_version(name, former).tags
            stays = reason_to_stay(former, tags, entry["tags"], alias)
            if stays and not entry.get("over_better", True):  # an older version's spool file says nothing
                _answer("notice", f"{name} version {version} is {stays}")
                return
            self._client.set_model_version_tag(name, version, FORMER_TAG + alias, former)
        self._client.set_registered_model_alias(name, alias, version)


def follow(spool: Path, target: Target, stage_is_alive: Callable[[float], bool]) -> None:
    """Deliver until the stage is gone and the file is at its end, then delete the file.

    While the stage lives, what cannot be delivered is tried again and again; after that, TrackingError is raised.
    """
    delivered = spool.with_suffix(".delivered")
    done = int(delivered.read_text()) if delivered.exists() else 0
    ended, alive, pause_s = False, True, 0.0
    while alive and not ended:
        alive = stage_is_alive(pause_s)  # asked before reading: what it wrote last is then seen
        content = _lines_from(spool, done)
        entries = [entry for line in content.splitlines() if (entry := json.loads(line))["op"] != "start"]
        ended = any(entry["op"] == "end" and entry["on"] == "stage" for entry in entries)
        if not alive and not ended:  # killed without a word
            entries.append({"op": "end", "on": "stage", "status": "KILLED"})
        try:
            target.apply(entries)
        except TrackingError as error:
            if ended or not alive:
                raise
            _answer("delayed", str(error))
            target.expect_repeats()
            pause_s = RETRY_S
            continue
        pause_s = POLL_S
        if content:
            done += len(content)
            write_whole(delivered, str(done))
    spool.unlink()
    delivered.unlink(missing_ok=True)


def deliver_leftovers(folder: Path, clients: dict[str, Any]) -> None:
    """Deliver, oldest first, the spool files of stages that are gone; what still cannot be delivered stays."""
    for spool in sorted(folder.glob("*.jsonl")):
        with open(spool, "rb") as source, suppress(TrackingError):
            try:
                fcntl.flock(source, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # its stage lives, or someone else delivers it
            first = source.readline()
            if first.endswith(b"\n"):
                follow(spool, _target(json.loads(first), clients), lambda _: False)
            else:
                spool.unlink()


def main(spool: Path) -> int:
    """Deliver one stage's spool file; returns the exit status."""
    os.nice(5)  # never at the cost of a rollout
    start = json.loads(_lines_from(spool, 0).splitlines()[0])
    clients: dict[str, Any] = {}
    try:
        target = _target(start, clients)
    except TrackingError as error:
        _answer("refused", json.dumps(error.for_user(start["context"]["tracking_uri"])))
        return 2
    _answer("ready", target.stage_run_id)
    deliver_leftovers(spool.parent, clients)
    try:
        follow(spool, target, _stage_is_alive)
    except TrackingError as error:
        _answer("delayed", str(error))
        return NOT_DELIVERED
    with suppress(OSError):  # not empty: another stage is at work
        spool.parent.rmdir()
    return 0


def _target(start: Entry, clients: dict[str, Any]) -> Target:
    uri = start["context"]["tracking_uri"]
    if uri not in clients:
        clients[uri] = connect(uri)
    return Target(clients[uri], start)


def _lines_from(spool: Path, offset: int) -> bytes:
    """The complete lines after `offset`."""
    with open(spool, "rb") as source:
        source.seek(offset)
        content = source.read()
    return content[: content.rfind(b"\n") + 1]


def _stage_is_alive(wait_s: float) -> bool:
    """Wait for standard input to close, at most `wait_s`."""
    readable, _, _ = select.select([sys.stdin], [], [], wait_s)
    return not readable


def _answer(kind: str, text: str) -> None:
    with suppress(BrokenPipeError):  # the stage was killed; what it wrote is delivered nevertheless
        print(kind, text, flush=True)


@contextmanager
def tracking_errors() -> Iterator[None]:
    """Turn whatever MLflow and its stores raise into one line."""
    try:
        yield
    except (TrackingError, UserError):
        raise
    except Exception as error:  # MLflow, SQLAlchemy, requests and every artifact store raise errors of their own
        text = redacted(" ".join(str(error).strip().split("\n")[0].split()))
        raise TrackingError(text or type(error).__name__) from error


def _in_plugin_task() -> bool:
    """Kubeflow's MLflow plugin made a run for this task: MLFLOW_RUN_ID is the stage's own."""
    return "KFP_MLFLOW_CONFIG" in os.environ and "MLFLOW_RUN_ID" in os.environ


def _given_parent() -> str:
    if _in_plugin_task():
        return str(json.loads(os.environ["KFP_MLFLOW_CONFIG"])["parentRunId"])
    return os.environ.get("MLFLOW_RUN_ID", "")


def _experiment_id(client: Any, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    database = _database_file(client.tracking_uri)
    location = None if database is None else (database.parent / "mlflow-artifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def _database_file(tracking_uri: str) -> Path | None:
    """Of `sqlite:////abs/mlflow.db`; other stores know themselves where artifacts go."""
    return Path(tracking_uri.removeprefix("sqlite:///")) if tracking_uri.startswith("sqlite:///") else None


def _find_or_create(
    client: Any, experiment_id: str, name: str, identity: dict[str, str], more: dict[str, str] | None = None
) -> str:
    """The newest run that carries all tags of `identity`, running again, or a new one."""
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in identity.items())
    found = client.search_runs([experiment_id], query, max_results=1)
    if found:
        run_id = str(found[0].info.run_id)
        client.update_run(run_id, status="RUNNING")
        return run_id
    tags = identity | (more or {}) | {CREATED_BY: "gripline", "mlflow.source.name": "gripline"}
    created = client.create_run(experiment_id, start_time=int(time.time() * 1000), tags=tags, run_name=name)
    return str(created.info.run_id)


def _apply_tags(client: Any, run_id: str, tags: dict[str, str]) -> None:
    from mlflow.entities import RunTag

    if tags:
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def _apply_params(client: Any, run: Any, params: dict[str, str]) -> None:
    """MLflow keeps a parameter's first value for ever: on a continued run only new names are logged."""
    from mlflow.entities import Param

    new = [Param(name, value[:500]) for name, value in params.items() if name not in run.data.params]
    for first in range(0, len(new), 100):
        client.log_batch(run.info.run_id, params=new[first : first + 100])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""Tracking against a real SQLite MLflow: nothing lost, nothing twice, no stage held up."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import fsspec
import pytest

from gripline import delivery
from gripline.champion import FORMER_TAG, LIST_TAG, SUCCESS_TAG
from gripline.credentials import redacted
from gripline.errors import UserError
from gripline.tracking import (
    SPOOL_FOLDER,
    default_tracking_uri,
    end_parent,
    ensure_parent,
    flatten,
    log_costs,
    stage_run,
)


@pytest.fixture
def uri(mlflow_uri):
    return mlflow_uri


def child(client, context, stage):
    experiment = client.get_run(context.parent_run_id).info.experiment_id
    (run,) = client.search_runs([experiment], f"tags.`gripline.stage` = '{stage}'")
    return run


def steps(client, run_id, name):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]


def target(client, context, stage="rl"):
    return delivery.Target(client, {"context": context.model_dump(mode="json"), "stage": stage})


def metrics_entry(step, value=1.0, on="stage"):
    return {"op": "metrics", "on": on, "metrics": {"loss": value}, "step": step, "time_ms": 1000 + step}


def spool_file(context, *entries):
    folder = Path(context.run_dir) / SPOOL_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{len(list(folder.iterdir()))}-rl.jsonl"
    start = {"op": "start", "stage": "rl", "context": context.model_dump(mode="json")}
    path.write_text("".join(json.dumps(entry) + "\n" for entry in (start, *entries)))
    return path


def test_a_stage_logs_everything_through_its_own_process(client, context, tmp_path):
    """The whole way, with the real delivery process. Catches anything that is lost between the stage and the store."""
    from matplotlib.figure import Figure

    report = tmp_path / "report.html"
    report.write_text("<p>fine</p>")
    with stage_run(context, "sft") as tracker:
        tracker.log_params({"sft": {"lr": 0.1, "lora": {"rank": 4}}})
        for step in range(1500):
            tracker.log_metrics({"train/loss": 1 / (step + 1)}, step)
        tracker.set_tags({"gripline.data_hash": "feed"})
        tracker.log_artifact(report, "report")
        tracker.log_table("episodes", [{"task": "push", "success": True}, {"task": "pull", "success": False}])
        tracker.log_figure("curve", Figure(figsize=(1, 1)))
        tracker.log_metrics({"eval/iid/success": 0.95}, on="parent")
        tracker.log_note("**fine**", on="parent")
        run_id = tracker.run_id
        tracker.end_parent()
    run, parent = client.get_run(run_id), client.get_run(context.parent_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == context.parent_run_id
    assert run.data.tags["gripline.split.iid"] == "0123456789ab"
    assert run.data.tags["gripline.data_hash"] == "feed"
    assert run.data.params == {"sft.lr": "0.1", "sft.lora.rank": "4"}
    assert steps(client, run_id, "train/loss") == [(step, 1 / (step + 1)) for step in range(1500)]
    artifacts = {item.path for folder in ("", "report", "plots") for item in client.list_artifacts(run_id, folder)}
    assert {"report/report.html", "episodes.json", "plots/curve.png"} <= artifacts
    table = json.loads(Path(client.download_artifacts(run_id, "episodes.json")).read_text())
    assert table == {"columns": ["task", "success"], "data": [["push", True], ["pull", False]]}
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "episodes.json", "type": "table"}]
    assert (parent.info.status, parent.data.metrics) == ("FINISHED", {"eval/iid/success": 0.95})
    assert parent.data.tags["mlflow.note.content"] == "**fine**"
    assert not (Path(context.run_dir) / SPOOL_FOLDER).exists()


def test_exceptions_and_interrupts_show_in_the_status(client, context):
    """Catches broken runs that look finished, and a parent that a stage ends on its own."""
    with pytest.raises(ZeroDivisionError), stage_run(context, "sft"):
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), stage_run(context, "rl"):
        raise KeyboardInterrupt
    assert child(client, context, "sft").info.status == "FAILED"
    assert child(client, context, "rl").info.status == "KILLED"
    assert client.get_run(context.parent_run_id).info.status == "RUNNING"


def test_a_stage_that_is_killed_loses_nothing(client, context):
    """Catches metrics that only lived in the killed process, and runs that stay RUNNING for ever."""
    code = (
        "import os, signal, sys; from gripline.stages import RunContext; from gripline.tracking import stage_run\n"
        "with stage_run(RunContext.model_validate_json(sys.argv[1]), 'rl') as tracker:\n"
        "    tracker.log_metrics({'loss': 0.5}, 7); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, context.model_dump_json()], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while (Path(context.run_dir) / SPOOL_FOLDER).exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    run = child(client, context, "rl")
    assert (run.info.status, steps(client, run.info.run_id, "loss")) == ("KILLED", [(7, 0.5)])


def test_a_tracker_that_cannot_start_stops_the_run(context):
    """Catches hours of training whose record goes nowhere."""
    nowhere = context.model_copy(update={"tracking_uri": "sqlite:////proc/nowhere/mlflow.db"})
    with pytest.raises(UserError, match=r"tracking.uri: MLflow cannot be used: .*; start the server") as caught:  # noqa: SIM117
        with stage_run(nowhere, "sft") as tracker:
            while True:
                tracker.log_metrics({"loss": 1.0}, 0)
                time.sleep(0.1)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"tracking\.uri"), stage_run(nowhere, "sft"):
        pass  # ends before the answer is known: the end must tell


def test_plan_is_told_when_the_server_is_not_there(monkeypatch):
    """Catches the minutes that MLflow's own retries take by default."""
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"http://127.0.0.1:9: tracking.uri: MLflow cannot be used"):
        ensure_parent("http://127.0.0.1:9", "tests", "run-1", tags={}, params={})
    assert time.monotonic() - started < 30


def test_tracking_costs_the_stage_neither_mlflow_nor_time(context):
    """Catches an MLflow import that creeps back into every stage."""
    code = (
        "import sys, time; from gripline.stages import RunContext; from gripline.tracking import stage_run\n"
        "start = time.perf_counter()\n"
        "with stage_run(RunContext.model_validate_json(sys.argv[1]), 'sft') as tracker:\n"
        "    tracker.log_metrics({'loss': 0.5}, 7); print(time.perf_counter() - start)\n"
        "assert not {'mlflow', 'torch', 'numpy'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code, context.model_dump_json()]
    done = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    assert float(done.stdout) < 1.0


def test_a_rerun_continues_parent_and_child_without_repeating_steps(client, context, uri):
    """Catches a second run per attempt, and curves that double back after a resume."""
    again = ensure_parent(uri, "tests", "run-1", tags={}, params={"sft": {"lr": 0.5}, "new": 1})
    assert again == context.parent_run_id
    assert client.get_run(again).data.params == {"sft.lr": "0.001", "new": "1"}
    assert ensure_parent(uri, "tests", "run-2", tags={}, params={}) != again

    first = target(client, context)
    first.apply([metrics_entry(step) for step in range(4)])
    delivery.end_run(client, first.stage_run_id, "FAILED")
    second = target(client, context)
    assert second.stage_run_id == first.stage_run_id
    assert client.get_run(first.stage_run_id).info.status == "RUNNING"
    second.apply([metrics_entry(step) for step in range(2, 6)])  # resumed from the checkpoint at step 2
    assert steps(client, first.stage_run_id, "loss") == [(step, 1.0) for step in range(6)]


class FlakyClient:
    """A server that is away for a while: the first `failures` batches get lost on the way or on the way back."""

    def __init__(self, client, failures):
        self._client, self.failures = client, failures

    def __getattr__(self, name):
        return getattr(self._client, name)

    def log_batch(self, run_id, **batch):
        if self.failures:
            self.failures -= 1
            if self.failures % 2 == 0:
                self._client.log_batch(run_id, **batch)  # stored, but the answer never arrives
            raise ConnectionError("connection reset\nby peer")
        self._client.log_batch(run_id, **batch)


def test_a_server_that_goes_away_for_a_while_loses_nothing(client, context, capsys):
    """Catches points that are lost or doubled when a batch is sent again."""
    spool = spool_file(context, *[metrics_entry(step) for step in range(3)])
    flaky = target(FlakyClient(client, failures=4), context)
    pauses = []

    def alive(wait_s):
        pauses.append(wait_s)
        return len(pauses) < 8

    delivery.follow(spool, flaky, alive)
    assert steps(client, flaky.stage_run_id, "loss") == [(0, 1.0), (1, 1.0), (2, 1.0)]
    assert pauses.count(delivery.RETRY_S) == 2
    assert "delayed connection reset\n" in capsys.readouterr().out
    assert not spool.exists()
    assert client.get_run(flaky.stage_run_id).info.status == "KILLED"  # it never said how it ended


def test_what_a_dead_stage_left_is_delivered_by_the_next(client, context):
    """Catches spool files that nobody ever reads, and a live stage's file that is taken from it."""
    end = {"op": "end", "on": "stage", "status": "FAILED"}
    left = spool_file(context, metrics_entry(0, 0.25), end)
    given_up = target(FlakyClient(client, failures=10**6), context)
    with pytest.raises(delivery.TrackingError, match="connection reset"):
        delivery.follow(left, given_up, lambda _: False)
    assert left.exists()
    torn = spool_file(context)
    torn.write_text('{"op": "sta')
    other_run = spool_file(context.model_copy(update={"parent_run_id": "gone"}), metrics_entry(0))

    delivery.deliver_leftovers(left.parent, {})
    run = child(client, context, "rl")
    assert (run.info.status, steps(client, run.info.run_id, "loss")) == ("FAILED", [(0, 0.25)])
    assert list(left.parent.glob("*.jsonl")) == [other_run]  # undeliverable: kept, and no reason to stop a stage


def test_what_a_dead_pod_left_is_delivered_by_the_next_pod(client, context):
    """Catches a record that is gone with the pod's own disk, and one that stays in the store after its delivery."""
    files, root = fsspec.filesystem("memory"), f"/bucket/{context.parent_run_id}"
    left = spool_file(context, metrics_entry(0, 0.25), {"op": "end", "on": "stage", "status": "FAILED"})
    files.pipe_file(f"{root}/{SPOOL_FOLDER}/{left.name}", left.read_bytes())
    with stage_run(context.model_copy(update={"run_dir": f"memory:/{root}"}), "eval-rl") as tracker:
        tracker.log_metrics({"eval/iid/success": 0.5})
    assert steps(client, child(client, context, "rl").info.run_id, "loss") == [(0, 0.25)]
    assert child(client, context, "eval-rl").data.metrics == {"eval/iid/success": 0.5}
    assert files.find(root) == []


def test_a_live_stage_keeps_its_spool_file(context):
    """Catches a stage whose file another stage delivers and deletes under its feet."""
    import fcntl

    spool = spool_file(context, metrics_entry(0))
    with open(spool, "a") as stage:
        fcntl.flock(stage, fcntl.LOCK_EX)
        delivery.deliver_leftovers(spool.parent, {})
        assert spool.exists()


def test_a_given_parent_is_used_and_never_ended(client, uri, monkeypatch):
    """Catches runs of others that we end, and a second parent next to the one that MLFLOW_RUN_ID names."""
    theirs = client.create_run(client.create_experiment("theirs"))
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs.info.run_id)
    assert ensure_parent(uri, "tests", "run-1", tags={"commit": "abc"}, params={"a": 1}) == theirs.info.run_id
    end_parent(uri, theirs.info.run_id, "FAILED")
    run = client.get_run(theirs.info.run_id)
    assert (run.info.status, run.data.tags["commit"], run.data.params) == ("RUNNING", "abc", {"a": "1"})
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(UserError, match="not found"):
        ensure_parent(uri, "tests", "run-1", tags={}, params={})


def test_in_a_task_of_the_kubeflow_plugin_its_runs_are_used(client, context, monkeypatch):
    """Catches a stage that makes its own run beside the plugin's, or ends the plugin's."""
    experiment = client.create_experiment("KFP-Default")
    parent, task = client.create_run(experiment), client.create_run(experiment)
    monkeypatch.setenv("MLFLOW_RUN_ID", task.info.run_id)
    monkeypatch.setenv("KFP_MLFLOW_CONFIG", json.dumps({"parentRunId": parent.info.run_id, "experimentId": experiment}))
    assert ensure_parent(context.tracking_uri, "tests", "run-1", tags={}, params={}) == parent.info.run_id
    spool = spool_file(context, metrics_entry(0), {"op": "end", "on": "stage", "status": "FINISHED"})
    delivery.follow(spool, target(client, context), lambda _: False)
    assert steps(client, task.info.run_id, "loss") == [(0, 1.0)]
    run = client.get_run(task.info.run_id)
    assert run.info.status == "RUNNING"
    assert (run.data.tags["gripline.stage"], run.data.tags["gripline.run_name"]) == ("rl", "run-1")  # to be found by


def test_costs_are_added_and_lead_to_the_page_of_all_runs(client, context, uri):
    """Catches a link that opens MLflow 3's page for traces of language models."""
    page = log_costs(uri, context.parent_run_id, {"run/seconds_total": 300.0})
    parent = client.get_run(context.parent_run_id)
    assert parent.data.metrics == {"run/seconds_total": 300.0}
    assert page == f"/#/experiments/{parent.info.experiment_id}?workflowType=machine_learning"


def test_a_policy_is_registered_once(client, context, tmp_path):
    """Catches a second version of the same policy after a rerun, and an alias that stays behind."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").write_text("{}")
    entry = {"op": "register", "on": "stage", "name": "policy", "alias": "champion", "tags": {"data": "feed"}}
    for _ in range(2):
        target(client, context, "promote").apply([entry | {"checkpoint": str(checkpoint)}])
    remote = context.model_copy(update={"run_name": "run-2"})
    target(client, remote, "promote").apply([entry | {"checkpoint": "s3://bucket/rl/checkpoint"}])
    versions = {version.version: version for version in client.search_model_versions("name = 'policy'")}
    assert sorted(int(number) for number in versions) == [1, 2]
    assert versions[1].tags == {"data": "feed"}
    assert Path(versions[1].source.removeprefix("file://"), "manifest.json").exists()
    assert versions[2].source == "s3://bucket/rl/checkpoint"
    assert client.get_model_version_by_alias("policy", "champion").version == 2


def test_the_alias_never_moves_back_silently(client, context, tmp_path, capsys):
    """Catches a better champion that is replaced without a word, and one of which nothing remembers that it was."""
    entry = {"op": "register", "on": "stage", "name": "policy", "alias": "champion", "checkpoint": "s3://b/c"}
    runs = [("0.90", False, 1), ("0.80", False, 1), ("0.95", False, 3), ("0.80", True, 4)]
    for number, (success, over_better, champion) in enumerate(runs):
        context = context.model_copy(update={"run_name": f"run-{number}"})
        tags = {LIST_TAG: "aa", SUCCESS_TAG: success}
        for _ in range(2):  # a rerun says the same
            target(client, context, "promote").apply([entry | {"tags": tags, "over_better": over_better}])
        assert client.get_model_version_by_alias("policy", "champion").version == champion
    told = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in told] == [
        "notice policy version 2 is registered",
        "notice policy version 2 is registered",
    ]
    versions = {version.version: version for version in client.search_model_versions("name = 'policy'")}
    assert FORMER_TAG + "champion" not in versions[2].tags
    assert versions[3].tags[FORMER_TAG + "champion"] == "1"
    assert versions[4].tags[FORMER_TAG + "champion"] == "3"


def test_a_new_database_is_made_without_chatter(tmp_path, capfd, monkeypatch):
    """Catches forty lines of migrations before the first line of ours."""
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    uri = default_tracking_uri("", tmp_path / "runs")
    run_id = ensure_parent(uri, "tests", "run-1", tags={}, params={})
    assert (tmp_path / "runs" / "mlflow.db").exists()
    run = delivery.connect(uri).get_run(run_id)
    assert run.info.artifact_uri.startswith(f"file://{tmp_path}/runs/mlflow-artifacts/")
    assert capfd.readouterr() == ("", "")


def test_where_tracking_goes(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_tracking_uri("", tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert default_tracking_uri("", tmp_path) == "http://mlflow:5000"
    assert default_tracking_uri("http://mine", tmp_path) == "http://mine"
    monkeypatch.setenv("GRIPLINE_TRACKING_URI", "http://me:secret@stands-in-a-secret:5000")
    assert default_tracking_uri("", tmp_path) == "http://stands-in-a-secret:5000"


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "GRIPLINE_TRACKING_URI"])
def test_passwords_come_from_the_environment_and_are_never_told(variable, context, monkeypatch, capsys):
    """Catches a password in an error, in the log or in a spool file; a client that has none where one is needed."""
    monkeypatch.setenv(variable, "http://me:secret@127.0.0.1:1")
    assert default_tracking_uri("", "runs") == "http://127.0.0.1:1"
    assert default_tracking_uri("http://mine", "runs") == "http://mine"
    with pytest.raises(UserError) as refused:
        ensure_parent(default_tracking_uri("", "runs"), "tests", "run-1", tags={}, params={})
    assert refused.value.line.startswith("http://127.0.0.1:1: tracking.uri: MLflow cannot be used: ")
    with (
        pytest.raises(UserError) as told,
        stage_run(context.model_copy(update={"tracking_uri": "http://127.0.0.1:1"}), "rl"),
    ):
        pass
    spooled = "".join(path.read_text() for path in Path(context.run_dir).rglob("*.jsonl"))
    assert spooled
    assert "secret" not in refused.value.line + told.value.line + spooled + "".join(capsys.readouterr())

    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.headers["Authorization"])
            self.send_response(404)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        public = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv(variable, public.replace("://", "://me:secret@"))
        with pytest.raises(UserError) as refused:
            ensure_parent(public, "tests", "run-1", tags={}, params={})
        server.shutdown()
    assert set(asked) == {f"Basic {b64encode(b'me:secret').decode()}"}
    assert "secret" not in refused.value.line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:p@ss@host:5000/x", "http://host:5000/x"),
        ("postgresql://me:secret@db/mlflow", "postgresql://db/mlflow"),
        ("API request to https://me:secret@host/api failed", "API request to https://host/api failed"),
        ("http://token@host", "http://host"),
        ("http://host/me@example.org", "http://host/me@example.org"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
        ("databricks", "databricks"),
    ],
)
def test_users_and_passwords_are_taken_out(text, shown):
    assert redacted(text) == shown


def test_parameters_are_flat_and_readable():
    assert flatten({"env": {"tasks": ("a", "b")}, "seed": 1, "lora": {"x": {"y": 0.5}}, "uri": "", "none": None}) == {
        "env.tasks": "a, b",
        "seed": "1",
        "lora.x.y": "0.5",
    }


def test_a_spool_on_a_full_disk_warns_once(context, capsys):
    """Catches a training that dies because its record cannot be written."""
    with stage_run(context, "sft") as tracker:
        tracker._sink.close()
        tracker._sink = open("/dev/full", "a")  # noqa: SIM115
        tracker.log_metrics({"loss": 1.0}, 0)
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker._sink = open(os.devnull, "a")  # noqa: SIM115
    assert capsys.readouterr().out.count("tracking is incomplete") == 1

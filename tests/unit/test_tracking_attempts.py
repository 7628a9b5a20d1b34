"""Tracking from inside a RayJob: whose attempt logs, and how its run ends. Against a real SQLite MLflow."""

import json

import pytest

from gripline import stopping
from gripline.tracking import TAGS_VARIABLE, stage_run

TAGS = {"gripline.attempt": "a1", "gripline.rayjob": "run-rl", "gripline.rayjob_uid": "u1", "kfp_run": "7"}


def test_a_stages_run_says_which_attempt_of_which_rayjob_logged_it(client, context, monkeypatch):
    monkeypatch.setenv(TAGS_VARIABLE, json.dumps(TAGS))
    with stage_run(context, "rl") as tracker:
        tracker.log_metrics({"loss": 1.0}, 0)
        run_id = tracker.run_id
    tags = client.get_run(run_id).data.tags
    assert {name: tags[name] for name in TAGS} == TAGS and tags["mlflow.parentRunId"] == context.parent_run_id
    monkeypatch.setenv(TAGS_VARIABLE, json.dumps(TAGS | {"gripline.attempt": "a2"}))
    with stage_run(context, "rl") as tracker:
        assert tracker.run_id == run_id, "the next attempt goes on with the same run"
    assert client.get_run(run_id).data.tags["gripline.attempt"] == "a2"


def test_a_superseded_attempt_leaves_its_run_to_the_one_that_goes_on_with_it(client, context):
    """Catches: KILLED on the page of a run that trains; a last metric that is lost."""
    with pytest.raises(stopping.SupersededError), stage_run(context, "rl") as tracker:
        tracker.log_metrics({"loss": 1.0}, 0)
        run_id = tracker.run_id
        raise stopping.SupersededError("a newer attempt owns the run")
    run = client.get_run(run_id)
    assert (run.info.status, run.info.end_time, run.data.metrics) == ("RUNNING", None, {"loss": 1.0})


def test_a_stage_that_was_asked_to_stop_was_killed(client, context):
    with pytest.raises(stopping.StopRequestedError), stage_run(context, "rl") as tracker:
        run_id = tracker.run_id
        raise stopping.StopRequestedError("no launcher")
    assert client.get_run(run_id).info.status == "KILLED"


@pytest.mark.parametrize("error", [None, ZeroDivisionError, stopping.StopRequestedError, stopping.SupersededError])
def test_a_run_that_the_pipelines_plugin_made_is_never_ended(client, context, monkeypatch, error):
    """Kubeflow's plugin closes it when the launcher's step ends; the driver in the RayJob only logs to it."""
    experiment = client.get_run(context.parent_run_id).info.experiment_id
    given = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    monkeypatch.setenv("KFP_MLFLOW_CONFIG", json.dumps({"parentRunId": context.parent_run_id}))
    monkeypatch.setenv(TAGS_VARIABLE, json.dumps(TAGS))
    try:
        with stage_run(context, "rl") as tracker:
            tracker.log_metrics({"loss": 1.0}, 0)
            if error is not None:
                raise error
    except BaseException as raised:  # noqa: BLE001  each of them
        assert isinstance(raised, error)
    run = client.get_run(given)
    assert (run.info.status, run.data.metrics["loss"]) == ("RUNNING", 1.0)
    assert run.data.tags["gripline.attempt"] == "a1"

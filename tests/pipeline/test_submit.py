"""Submitting to a Kubeflow Pipelines server: what kfp's generated client really sends, and every refusal as a line."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fake_kfp import FakeKfp, serve

from gripline import profiles
from gripline.errors import UserError
from pipelines.cli import main
from pipelines.compile import COMPILED
from pipelines.submit import TOKEN_VARIABLE, Server, submit

SECRET = "tok-3141592653"


@pytest.fixture
def kfp_api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeKfp]:
    monkeypatch.setenv("HOME", str(tmp_path))  # no one's ~/.config/kfp
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with serve() as fake:
        yield fake


def run_cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_submit_sends_experiment_and_run(kfp_api: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a parameter that the graph lacks, an override that is lost on the way, a missing platform spec."""
    code = run_cli(
        *("submit", "smoke", "--host", kfp_api.host, "--store", "s3://bucket/runs", "--set", "rl.lr=1e-4"),
        *("--seed", "7", "--image", "registry/step:1", "--experiment", "faucets", "--tracking", "http://mlflow:5000"),
    )
    assert code == 0
    assert capsys.readouterr().out == f"{kfp_api.host}/#/runs/details/r0\n"
    (experiment,) = kfp_api.sent("POST", "/experiments")
    assert experiment.body["display_name"] == "faucets"
    (run,) = kfp_api.sent("POST", "/runs")
    assert run.body["experiment_id"] == "e0"
    assert run.body["display_name"].startswith("smoke ")
    spec = run.body["pipeline_spec"]
    documents = list(yaml.safe_load_all(COMPILED.read_text()))
    assert spec["pipeline_spec"]["root"].keys() == documents[0]["root"].keys()
    assert spec["platform_spec"]["platforms"].keys() == {"kubernetes"}
    sent = run.body["runtime_config"]["parameters"]
    assert sent.keys() <= documents[0]["root"]["inputDefinitions"]["parameters"].keys()
    profile = profiles.load(sent.pop("profile"))
    assert (profile.rl.lr, profile.seed) == (1e-4, 7)
    assert sent == {
        "store_uri": "s3://bucket/runs",
        "image": "registry/step:1",
        "tracking_uri": "http://mlflow:5000",
    }


def test_existing_experiment_is_used_and_the_token_sent(
    kfp_api: FakeKfp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a second experiment of the same name, a token that is not sent, or shown."""
    monkeypatch.setenv(TOKEN_VARIABLE, SECRET)
    kfp_api.experiments["gripline"] = {"experiment_id": "old", "display_name": "gripline"}
    assert run_cli("submit", "smoke", "--host", kfp_api.host, "--store", "s3://b/r") == 0
    assert not kfp_api.sent("POST", "/experiments")
    (run,) = kfp_api.sent("POST", "/runs")
    assert run.body["experiment_id"] == "old"
    assert {request.authorization for request in kfp_api.requests} == {f"Bearer {SECRET}"}
    captured = capsys.readouterr()
    assert SECRET not in captured.out + captured.err + repr(Server(kfp_api.host, token=SECRET))


@pytest.mark.parametrize(
    ("endpoint", "status", "body", "told"),
    [
        ("GET /healthz", 401, "", TOKEN_VARIABLE),
        ("GET /experiments", 403, '{"message": "User is not authorized"}', "refuses us (403): User is not authorized"),
        ("GET /healthz", 404, "page not found", "no Kubeflow Pipelines API (404)"),
        ("GET /healthz", 200, "<html>welcome</html>", "is not the Kubeflow Pipelines API"),
        ("POST /experiments", 500, '{"message": "database is gone"}', "is in trouble (500): database is gone"),
        ("POST /runs", 503, "upstream connect error", "is in trouble (503): upstream connect error"),
        (
            "POST /runs",
            400,
            '{"message": "Invalid input error: bad spec"}',
            "was not accepted (400): Invalid input error",
        ),
    ],
)
def test_refusals_are_one_line(
    kfp_api: FakeKfp,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    endpoint: str,
    status: int,
    body: str,
    told: str,
) -> None:
    """Catches: the client's multi-line exceptions with headers, and with them the token, on the user's screen."""
    monkeypatch.setenv(TOKEN_VARIABLE, SECRET)
    kfp_api.failures[endpoint] = (status, body)
    assert run_cli("submit", "smoke", "--host", kfp_api.host, "--store", "s3://b/r") == 2
    errors = capsys.readouterr().err
    assert told in errors and errors.count("\n") == 1
    assert SECRET not in errors


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("http://127.0.0.1:9", "cannot be reached"),
        ("http://no-such-host.invalid", "cannot be reached"),
        ("localhost:8888", "begin it with http:// or https://"),
    ],
)
def test_unreachable_host_is_one_line(host: str, told: str) -> None:
    """Catches: half a minute of retries with tracebacks, which is what kfp.Client does."""
    with pytest.raises(UserError, match=told):
        submit(Server(host), experiment="e", name="n", arguments={})


def test_kfp_command_line_takes_the_committed_file(kfp_api: FakeKfp) -> None:
    """`kfp run create -e EXPERIMENT -f FILE key=value` is the documented way without gripline."""
    kfp_command = Path(sys.executable).with_name("kfp")
    command = [str(kfp_command), "--endpoint", kfp_api.host, "run", "create", "-e", "faucets", "-f", str(COMPILED)]
    command += ["profile=laptop", "seed=3", "store_uri=s3://bucket/runs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    (run,) = kfp_api.sent("POST", "/runs")
    expected = {"profile": "laptop", "seed": 3, "store_uri": "s3://bucket/runs"}
    assert run.body["runtime_config"]["parameters"] == expected
    assert run.body["experiment_id"] == "e0"

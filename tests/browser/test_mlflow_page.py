"""MLflow's own pages on what gripline logs: runs stand beside each other under the promised names."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import reports

from gripline.stages import RunContext
from gripline.tables import final_metrics, policy_metrics
from gripline.tracking import ensure_parent, stage_run

SUCCESSES = {"first": {"iid": 8, "camera": 5, "light": 4}, "second": {"iid": 18, "camera": 9, "light": 15}}
"""Run -> axis -> successes of 20 episodes a task, of the RL policy; those of the SFT policy are 4 throughout."""
GROUP_SIZES = {"first": 4, "second": 8}
START_S = 120
ROWS = """() => {  // the texts of each line, from left to right; metrics are not in a table but laid out by coordinates
    const cells = [...document.querySelectorAll('[role="rowgroup"] > div')]
        .map(cell => [cell.getBoundingClientRect(), cell.innerText.trim()]);
    const lines = new Map();
    for (const [box, text] of cells.sort(([one], [other]) => one.top - other.top || one.left - other.left))
        lines.set(box.top, [...(lines.get(box.top) || []), text]);
    const tables = [...document.querySelectorAll('tr')].map(row => [...row.cells].map(cell => cell.innerText.trim()));
    return [...lines.values(), ...tables];
}"""


def log_run(uri: str, folder: Path, name: str) -> dict[str, str]:
    """What a pipeline's run and its evaluation's run hold; returns the ids of both."""
    parent = ensure_parent(uri, "tests", name, tags={}, params={"rl": {"lr": 1e-4, "group_size": GROUP_SIZES[name]}})
    context = RunContext(
        run_name=name,
        run_dir=str(folder / name),
        tracking_uri=uri,
        experiment="tests",
        parent_run_id=parent,
        profile_name="laptop",
        seed=3,
        split_hashes={},
    )
    rl = reports.evaluation(SUCCESSES[name])
    summary = reports.summary_of(reports.evaluation(dict.fromkeys(SUCCESSES[name], 4)), rl)
    with stage_run(context, "eval-rl") as tracker:
        tracker.log_metrics(policy_metrics(summary.rl))
        tracker.log_table("episodes", [{"task": each.spec.task, "success": each.success} for each in rl])
        tracker.log_metrics(final_metrics(summary), on="parent")
        return {"pipeline": parent, "evaluation": tracker.run_id}


@pytest.fixture
def runs(mlflow_uri: str, tmp_path: Path) -> list[dict[str, str]]:
    return [log_run(mlflow_uri, tmp_path, name) for name in SUCCESSES]


@pytest.fixture
def server(mlflow_uri: str, runs: list[dict[str, str]], tmp_path: Path) -> Iterator[str]:
    """The address of a real MLflow server on that store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", mlflow_uri, "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--artifacts-destination", str(tmp_path / "artifacts")]
    said = tmp_path / "server.log"
    quiet = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with open(said, "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=quiet, start_new_session=True)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, said)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(log.read_text())


@pytest.fixture
def compare(visit: Callable, server: str) -> Callable[[list[str]], Any]:
    """Opens the compare page of runs and waits until it is filled."""

    def go(run_ids: list[str]) -> Any:
        from mlflow import MlflowClient

        experiment = MlflowClient(server).get_run(run_ids[0]).info.experiment_id
        query = f"runs={quote(json.dumps(run_ids))}&experiments={quote(json.dumps([experiment]))}"
        page = visit(f"{server}/#/compare-runs?{query}").page
        page.get_by_text("eval/iid/success", exact=True).last.wait_for()
        return page

    return go


def test_the_compare_page_shows_both_runs_beside_each_other(compare: Callable, runs: list[dict[str, str]]) -> None:
    """Catches a metric that is renamed, logged to another run or hidden by others: the page sorts by name, and a reader
    sees the first few. Pipelines are compared, and evaluations alone."""
    expected = {
        f"eval/{name}/success": [f"{each[axis] / 20:g}" for each in SUCCESSES.values()]
        for name, axis in (("iid", "iid"), ("ood/camera", "camera"), ("ood/light", "light"))
    }
    for kind in ("pipeline", "evaluation"):
        page = compare([run[kind] for run in runs])
        rows = page.evaluate(ROWS)
        metrics = {name: values for name, *values in rows if "/" in name}
        assert expected.items() <= metrics.items()
        assert {len(values) for values in metrics.values()} == {len(runs)}
        assert list(metrics) == sorted(metrics)
        if kind == "pipeline":
            assert list(metrics)[:3] == ["eval/iid/ci_high", "eval/iid/ci_low", "eval/iid/success"]
            assert ["rl.group_size", "4", "8"] in rows

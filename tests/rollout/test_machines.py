"""Machines of a Ray cluster come and go while rollouts run on it, as pods do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def _one_ray_cluster():
    """None in this process: each scenario has a cluster of its own."""


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("scenario", ["env_pods", "policy_pods", "weights_that_are_gone", "nobody_left", "late_pods"])
def test_a_rollout_survives_what_happens_to_machines(scenario: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{HERE.parent}", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, str(HERE / "machines.py"), scenario, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=190,
    )
    assert done.returncode == 0 and done.stdout.endswith("fine\n"), done.stdout[-3000:] + done.stderr[-6000:]

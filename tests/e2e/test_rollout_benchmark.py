"""The rollout benchmark runs: every engine on Ray, tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_engine_runs_the_drawn_episodes(tmp_path: Path) -> None:
    """Catches: a benchmark that no longer fits the engine, a bound that a measured run beats, steps after success."""
    out = tmp_path / "rollout.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "rollout.py"), "--json", str(out), "--quick"]
    done = subprocess.run([*command, "--case", "jitter"], capture_output=True, text=True, cwd=tmp_path, timeout=110)
    assert done.returncode == 0, done.stderr
    rows = {row["engine"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == {"gripline", "lockstep", "two_stage"}
    for row in rows.values():
        assert row["case"] == "jitter"
        assert 0 < row["efficiency"] <= 1
        assert 0 < row["env_busy"] <= 1.05 and 0 < row["policy_busy"] <= 1
    assert rows["gripline"]["dead_steps"] == 0
    assert rows["lockstep"]["dead_steps"] == rows["two_stage"]["dead_steps"] > 0

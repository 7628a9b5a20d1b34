"""What the launcher's benchmark makes of its measurements."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # a folder of scripts, not a package

from launcher import judge, summary
from launcher_kills import NETS, Killed

CLEAN = Killed(killed_after_s=3.0, had_rayjob=True, had_driver=True, clean_after_s=2.0, orphan=False)
EARLY = Killed(killed_after_s=0.3, had_rayjob=False, had_driver=False, clean_after_s=0.0, orphan=False)
ORPHAN = Killed(killed_after_s=4.0, had_rayjob=True, had_driver=True, clean_after_s=60.0, orphan=True, left=("Pod p",))
COSTS: dict[str, Any] = {
    "pss_mb": 150.0,
    "import_s": {"file": [0.7, 1.0], "s3": [0.9]},
    "to_rayjob_s": [2.0, 3.0],
    "log_lag_s": {"max": 5.0, "median": 0.1, "of": "100 lines"},
}


def missed(costs: dict[str, Any], killed: list[Killed]) -> list[str]:
    """The targets that are not reached."""
    nets = {name: summary(NETS[name], killed) for name in NETS}
    return [verdict.name for verdict in judge(costs, nets) if not verdict.reached]


def test_every_target_can_be_reached() -> None:
    assert missed(COSTS, [CLEAN, EARLY]) == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"pss_mb": 150.1}, "memory (PSS), MB"),
        ({"import_s": {"file": [0.1], "s3": [0.1, 1.1]}}, "import, s"),
        ({"to_rayjob_s": [3.1, 0.1]}, "step start to RayJob, s"),
        ({"log_lag_s": {"max": 5.1, "median": 0.1, "of": "2 lines"}}, "log lag, s"),
    ],
)
def test_the_worst_counts(changes: dict[str, Any], name: str) -> None:
    assert missed(COSTS | changes, [CLEAN]) == [name]


def test_one_orphan_misses_the_target_of_its_net() -> None:
    assert len(missed(COSTS, [CLEAN, ORPHAN])) == len(NETS)
    found = summary(NETS["heartbeat"], [CLEAN, EARLY, ORPHAN])
    assert (found["kills"], found["with_rayjob"], found["orphans"], found["worst_s"]) == (3, 2, 1, 60.0)

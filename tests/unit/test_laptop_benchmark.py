"""What the benchmark makes of several runs: its verdicts, and the tables in the documents."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # a folder of scripts, not a package

from laptop import judge
from verdicts import at_most
from write_results import DOCUMENTS, PICTURE, TABLES, fill, rollout_tables

from gripline.config import PromoteConfig
from gripline.splits import OOD_AXES
from gripline.summary import RunFacts, Seconds, Summary, summarise
from gripline.types import EpisodeRecord, EpisodeSpec

ROOT = Path(__file__).parents[2]
TASKS = ("faucet-open", "faucet-close")
ABLATIONS = ("no_image", "no_instruction", "swapped_instruction")
N = 40


def evaluation(successes: dict[str, int]) -> list[EpisodeRecord]:
    """N episodes per task and axis, of which the first so many succeed."""
    return [
        EpisodeRecord(
            spec=EpisodeSpec(
                suite="fake",
                task=task,
                instruction=axis,
                init_seed=seed,
                split="ood" if axis in OOD_AXES else "iid",
                axis=axis,
            ),
            success=seed < successes.get(axis, 0),
            num_steps=9,
            num_chunks=3,
        )
        for axis in ("iid", *OOD_AXES, *ABLATIONS)
        for task in TASKS
        for seed in range(N)
    ]


def run(seed: int, *, total_s: float = 300.0, memory_mb: float = 4000.0, **rl: int) -> Summary:
    """A run whose RL policy reaches every target, but for `rl`: successes of N per axis."""
    good = {"iid": 39, "camera": 30, "light": 30, "colour": 30, "position": 20, "paraphrase": 20}
    facts = RunFacts(
        profile="laptop",
        seed=seed,
        seconds=Seconds(demos=5, sft=20, rl=200, eval=60, total=total_s),
        peak_memory_mb=memory_mb,
        env_steps=123456,
        mlflow_run_id="f00",
        split_hashes={"iid": "ab"},
    )
    return summarise(
        evaluation({"iid": 20} | dict.fromkeys(OOD_AXES, 20)),
        evaluation(good | rl),
        facts=facts,
        promote=PromoteConfig(),
        indifference_threshold=0.1,
        shared_scene_tasks=TASKS,
    )


def missed(*runs: Summary) -> dict[str, tuple[float, str]]:
    """The targets that are not reached: measured, and where."""
    verdicts = judge(runs)
    assert len({verdict.name for verdict in verdicts}) == len(verdicts) == 10
    return {verdict.name: (round(verdict.measured, 3), verdict.where) for verdict in verdicts if not verdict.reached}


def test_good_runs_reach_every_target() -> None:
    assert missed(run(1), run(2, iid=40)) == {}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"iid": 35}, {"RL on IID, mean": 0.925, "RL on IID, every seed": 0.875}),
        ({"light": 19}, {"camera, light, colour: share of IID": 0.487}),
        ({"position": 5}, {"axes significantly below SFT": 1}),
        ({"no_image": 5}, {"black image": 0.125}),
        ({"swapped_instruction": 5}, {"other task's text, shared scene": 0.125}),
        ({"total_s": 360.5}, {"whole run, s": 360.5}),
        ({"memory_mb": 6000.5}, {"peak memory, MB": 6000.5}),
    ],
)
def test_each_target_is_missed_by_the_run_that_misses_it(changes: dict[str, int], names: dict[str, float]) -> None:
    """Catches: a target that every run reaches; a mean where every seed counts, and the reverse."""
    found = missed(run(1), run(2, **changes))
    assert {name: measured for name, (measured, _) in found.items()} == names
    assert all("seed 2" in where or where == "mean of 2 seeds" for _, where in found.values())


def test_a_gain_too_small_or_unsure_is_missed() -> None:
    found = missed(run(1, iid=36), run(2, iid=22))
    assert found["RL − SFT on IID, mean"] == (0.225, "mean of 2 seeds")
    assert found["p of RL − SFT, every seed"][1] == "seed 2"


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Documents with markers and old tables, and the benchmark's JSON."""
    (tmp_path / "docs").mkdir()
    for name in DOCUMENTS:
        blocks = "\n\n".join(f"<!-- {table}:begin -->\n| old |\n<!-- {table}:end -->" for table in TABLES)
        (tmp_path / name).write_text(f"before\n{blocks}\nafter\n")
    runs = [run(41, iid=40), run(42, iid=38, position=5, total_s=400)]
    result = {
        "splits_seed": 7,
        "machine": {"cpu": "Abacus", "cores": 2, "memory_gb": 24, "python": "3.11.7"},
        "targets": [vars(verdict) for verdict in judge(runs)],
        "runs": [{"commit": f"c{each.seed}", "summary": each.model_dump(mode="json")} for each in runs],
    }
    (tmp_path / "laptop.json").write_text(json.dumps(result))
    return tmp_path


def test_tables_and_picture_are_written_from_the_json(documents: Path) -> None:
    """Catches: a number in the wrong column, a table left old, text outside of the markers that is touched."""
    script = str(ROOT / "benchmarks" / "write_results.py")
    for _ in range(2):  # the second time it finds its own tables
        command = [sys.executable, script, str(documents / "laptop.json"), "--root", str(documents)]
        subprocess.run(command, check=True, timeout=60)
    for name in DOCUMENTS:
        text = (documents / name).read_text()
        assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
        lines = text.splitlines()
        assert (
            "| 42 | 0.500 | 0.950 | +0.450 [+0.35, +0.56] | 3e-11 | 0.75 | 0.75 | 0.75 | 0.12 | 0.50 | 0.00 | 0.00 |"
        ) in lines
        assert (
            "| **mean** | **0.500** | **0.975** | **+0.475** |  | 0.75 | 0.75 | 0.75 | 0.31 | 0.50 | 0.00 | 0.00 |"
            in lines
        )
        assert any(line.startswith("| position | 0.50 → 0.50, +0.00, 1 | 0.50 → 0.12, -0.38, ") for line in lines)
        assert "| whole run, s ≤ 360 | 400 (seed 42) | **missed** |" in lines
        assert "| RL on IID, mean ≥ 0.95 | 0.975 (mean of 2 seeds) | reached |" in lines
        costs = next(
            line for line in lines if line.startswith("| 42 | 400 | 5 | 20 | 200 | 60 | 4000 | 123,456 | no: ")
        )
        assert "OOD position: falls by 0.375" in costs and costs.endswith(" | c42 |")
        assert "Measured on: Abacus, 2 cores, 24 GB, Python 3.11.7. Test lists: `splits.seed` 7." in lines
        for table in re.findall(r"begin -->\n(.*?)<!--", text, re.DOTALL):
            assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
    assert (documents / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_the_documents_have_a_place_for_every_table() -> None:
    """Catches: a misspelt marker, whose table would never be renewed."""
    markers = [re.findall(r"<!-- (laptop[a-z-]*):begin -->", (ROOT / name).read_text()) for name in DOCUMENTS]
    ends = [re.findall(r"<!-- (laptop[a-z-]*):end -->", (ROOT / name).read_text()) for name in DOCUMENTS]
    assert markers == ends == [["laptop"], list(TABLES)]


def test_rollout_tables_have_a_line_for_each_engine_and_target() -> None:
    row = {"case": "jitter", "engine": "two_stage", "useful_steps_per_s": 1234.5, "efficiency": 0.456, "env_busy": 0.5}
    row |= {"policy_busy": 0.25, "dead_steps": 31240, "seconds": 2.0, "bound_s": 1.0, "simulated_s": 1.25}
    verdict = asdict(at_most("transport, ms a chunk", 3, {"1 slot": 4.05, "8 slots": 2.0}))
    calls = [{"way": "TCP", "pause": "back to back", "pixels": pixels, "ms": pixels / 64} for pixels in (64, 65536)]
    rows = [row, row | {"engine": "gripline"}]
    tables = rollout_tables({"rows": rows, "targets": [verdict], "calls": calls})
    assert tables["rollout"][2:] == [
        "| jitter | two-stage | 1,234 | 0.46 |  | 0.50 | 0.25 | 31,240 |",
        "| jitter | gripline | 1,234 | 0.46 | 0.80 | 0.50 | 0.25 | 31,240 |",
    ]
    assert tables["rollout-targets"][2:] == ["| transport, ms a chunk ≤ 3 | 4.05 (1 slot) | **missed** |"]
    assert tables["rollout-calls"][2:] == ["| TCP | back to back | 1.0 | 1024.0 |"]
    assert "rollout-calls" not in rollout_tables({"rows": rows, "targets": []})
    for lines in tables.values():
        assert len({line.count("|") for line in lines}) == 1
    filled = fill("a\n<!-- rollout:begin -->\nold\n<!-- rollout:end -->\nb\n", tables)
    assert filled.startswith("a\n<!-- rollout:begin -->\n| case") and filled.endswith("|\n<!-- rollout:end -->\nb\n")

"""Does RL improve the policy? Whole runs of a profile with several training seeds, on test episodes of their own.

    python benchmarks/laptop.py --seeds 81 82 83 --json build/laptop.json
    python benchmarks/write_results.py build/laptop.json

Every seed is one `gripline run` with all processes started, so times and memory are what a user sees. The test lists
come from `--splits-seed`, which tuning must never use. Printed: success per seed, and for each target whether it was
reached. Written, after every seed: the same, the whole summary of each run, and which code and machine it was.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from verdicts import Verdict, at_least, at_most, machine, show_verdicts

from gripline import profiles
from gripline.atomic import write_whole
from gripline.inputs import RunInputs
from gripline.splits import VISUAL_AXES
from gripline.summary import SHARED_SCENE, Ablation, Summary, read_summary
from gripline.tables import final_metrics, is_sure
from pipelines.run_folder import SUMMARY_FILE, is_finished

ROOT = Path(__file__).parents[1]
UNTUNED_SPLITS_SEED = 32452843
"""Of test lists that no choice in the profile was ever made on."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--splits-seed", type=int, default=UNTUNED_SPLITS_SEED)
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--out", type=Path, default=Path("build/laptop-runs"))
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    runs: list[tuple[str, Summary]] = []
    for seed in arguments.seeds:
        runs.append(_run(arguments.profile, seed, arguments.splits_seed, arguments.out))
        summaries = [summary for _, summary in runs]
        verdicts = judge(summaries)
        result = {
            "profile": arguments.profile,
            "splits_seed": arguments.splits_seed,
            "seeds": arguments.seeds,
            "machine": machine(),
            "targets": [asdict(verdict) for verdict in verdicts],
            "mean": _means(summaries),
            "runs": [{"commit": commit, "summary": summary.model_dump(mode="json")} for commit, summary in runs],
        }
        write_whole(arguments.json, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    _show(summaries, verdicts)
    return 0


def judge(runs: Sequence[Summary]) -> list[Verdict]:
    """Every target of docs/results.md, each with the worst of what was measured."""
    n = f"mean of {len(runs)} seeds"
    rl = {f"seed {run.seed}": run.rl.iid.success for run in runs}
    gain = {f"seed {run.seed}": run.paired.iid.difference for run in runs}
    p = {f"seed {run.seed}": run.paired.iid.p for run in runs}
    shares = {
        f"seed {run.seed}, {axis}": run.rl.ood[axis].success / max(run.rl.iid.success, 1e-9)
        for run in runs
        for axis in VISUAL_AXES
    }
    fallen = [
        f"seed {run.seed}, {axis}: {paired.difference:+.2f}"
        for run in runs
        for axis, paired in run.paired.ood.items()
        if is_sure(paired) and paired.difference < 0
    ]
    blank = {f"seed {run.seed}": _ablation(run, "no_image") for run in runs}
    swapped = {f"seed {run.seed}": _ablation(run, f"swapped_instruction{SHARED_SCENE}") for run in runs}
    total_s = {f"seed {run.seed}": run.seconds.total for run in runs}
    memory_mb = {f"seed {run.seed}": run.peak_memory_mb for run in runs}
    return [
        at_least("RL on IID, mean", 0.95, {n: _mean(rl.values())}),
        at_least("RL on IID, every seed", 0.90, rl),
        at_least("RL − SFT on IID, mean", 0.35, {n: _mean(gain.values())}),
        at_most("p of RL − SFT, every seed", 0.01, p, relation="<"),
        at_least("camera, light, colour: share of IID", 0.5, shares),
        Verdict("axes significantly below SFT", "≤", 0, len(fallen), "; ".join(fallen) or "none", not fallen),
        at_most("black image", 0.1, blank),
        at_most("other task's text, shared scene", 0.1, swapped),
        at_most("whole run, s", 360, total_s),
        at_most("peak memory, MB", 6000, memory_mb),
    ]


def _ablation(run: Summary, name: str) -> float:
    rate: Ablation = run.rl.ablations[name]
    return rate.success


def _run(profile: str, seed: int, splits_seed: int, out: Path) -> tuple[str, Summary]:
    """(commit, summary) of one whole run; a finished one (of an interrupted benchmark) is read, not repeated."""
    folder = out / f"{profile}-{splits_seed}-{seed}"
    record = folder.with_suffix(".commit")
    override = f"splits.seed={splits_seed}"
    if is_finished(folder):
        difference = RunInputs(profiles.load(profile, [override], seed)).difference(folder)
        if difference:
            raise SystemExit(f"{folder} holds a run of another profile: {difference}; choose another --out")
    else:
        write_whole(record, _commit())
        gripline = str(Path(sys.executable).with_name("gripline"))
        command = [gripline, "run", profile, "--out", str(folder), "--seed", str(seed), "--set", override]
        subprocess.run(command, check=True)
    commit = record.read_text(encoding="utf-8") if record.exists() else "unknown"
    return commit, read_summary(folder / SUMMARY_FILE)


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _means(runs: Sequence[Summary]) -> dict[str, float]:
    """Of every metric by which whole runs are compared."""
    metrics = [final_metrics(run) for run in runs]
    return {name: _mean(each[name] for each in metrics) for name in metrics[0]}


def _show(runs: Sequence[Summary], verdicts: Sequence[Verdict]) -> None:
    table = Table(title="success by training seed; test episodes shared by all")
    for name in ("seed", "SFT", "RL", "RL − SFT", "p", *VISUAL_AXES, "blank", "swapped (shared)", "seconds", "MB"):
        table.add_column(name, justify="right")
    for run in runs:
        paired = run.paired.iid
        cells = [str(run.seed), f"{run.sft.iid.success:.3f}", f"{run.rl.iid.success:.3f}"]
        cells += [f"{paired.difference:+.3f}", f"{paired.p:.1e}"]
        cells += [f"{run.rl.ood[axis].success:.2f}" for axis in VISUAL_AXES]
        cells += [f"{_ablation(run, name):.2f}" for name in ("no_image", f"swapped_instruction{SHARED_SCENE}")]
        table.add_row(*cells, f"{run.seconds.total:.0f}", f"{run.peak_memory_mb:.0f}")
    console = Console()
    console.print(table)
    show_verdicts(console, verdicts)


if __name__ == "__main__":
    raise SystemExit(main())

"""Does RL improve the policy? Whole runs of a profile with several training seeds, on test episodes of their own.

    python benchmarks/laptop.py --seeds 41 42 43 --json build/laptop.json

Every seed is one `gripline run` with all processes started, so times and memory are what a user sees. The test lists
come from `--splits-seed`, which tuning must never use. Printed and written: success per seed and split, paired
differences, seconds per stage, peak memory, and the averages over seeds that docs/results.md quotes.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gripline.splits import VISUAL_AXES

UNTUNED_SPLITS_SEED = 15485863
"""Of test lists that no choice in the profile was ever made on."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--splits-seed", type=int, default=UNTUNED_SPLITS_SEED)
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--out", type=Path, default=Path("build/laptop-runs"))
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [_run(arguments.profile, seed, arguments.splits_seed, arguments.out) for seed in arguments.seeds]
    result = {"profile": arguments.profile, "splits_seed": arguments.splits_seed, "runs": rows, "mean": _means(rows)}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _show(rows, result["mean"])
    return 0


def _run(profile: str, seed: int, splits_seed: int, out: Path) -> dict[str, Any]:
    """One whole run; a folder that holds a finished one (of an interrupted benchmark) is read, not repeated."""
    folder = out / f"{profile}-{splits_seed}-{seed}"
    if not (folder / "summary.json").exists():
        gripline = str(Path(sys.executable).with_name("gripline"))
        overrides = ["--seed", str(seed), "--set", f"splits.seed={splits_seed}"]
        subprocess.run([gripline, "run", profile, "--out", str(folder), *overrides], check=True)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    rl, sft, paired = summary["rl"], summary["sft"], summary["paired"]
    return {
        "seed": seed,
        "sft_iid": sft["iid"]["success"],
        "rl_iid": rl["iid"]["success"],
        "difference": paired["iid"]["difference"],
        "p": paired["iid"]["p"],
        "sft_ood": {axis: rate["success"] for axis, rate in sft["ood"].items()},
        "rl_ood": {axis: rate["success"] for axis, rate in rl["ood"].items()},
        "ood_difference": {axis: [d["difference"], d["ci95"]] for axis, d in paired["ood"].items()},
        "rl_ablations": {name: rate["success"] for name, rate in rl["ablations"].items()},
        "seconds": summary["seconds"],
        "peak_memory_mb": summary["peak_memory_mb"],
        "env_steps": summary["env_steps"],
        "promoted": summary["promoted"],
        "split_hashes": summary["split_hashes"],
    }


def _means(rows: list[dict[str, Any]]) -> dict[str, float]:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    named = {name: mean([row[name] for row in rows]) for name in ("sft_iid", "rl_iid", "difference", "peak_memory_mb")}
    named |= {f"rl_ood/{axis}": mean([row["rl_ood"][axis] for row in rows]) for axis in rows[0]["rl_ood"]}
    named |= {
        f"rl_ablation/{name}": mean([row["rl_ablations"][name] for row in rows]) for name in rows[0]["rl_ablations"]
    }
    named |= {f"seconds/{name}": mean([row["seconds"][name] for row in rows]) for name in rows[0]["seconds"]}
    return named


def _show(rows: list[dict[str, Any]], means: dict[str, float]) -> None:
    table = Table(title="success by training seed; test episodes shared by all")
    for name in ("seed", "SFT", "RL", "RL − SFT", "p", *VISUAL_AXES, "blank", "swapped (shared)", "seconds", "MB"):
        table.add_column(name, justify="right")
    for row in rows:
        ablations = row["rl_ablations"]
        cells = [
            row["seed"],
            f"{row['sft_iid']:.3f}",
            f"{row['rl_iid']:.3f}",
            f"{row['difference']:+.3f}",
            f"{row['p']:.1e}",
        ]
        cells += [f"{row['rl_ood'][axis]:.2f}" for axis in VISUAL_AXES]
        cells += [f"{ablations['no_image']:.2f}", f"{ablations['swapped_instruction_shared_scene']:.2f}"]
        cells += [f"{row['seconds']['total']:.0f}", f"{row['peak_memory_mb']:.0f}"]
        table.add_row(*[str(cell) for cell in cells])
    console = Console()
    console.print(table)
    for name, value in means.items():
        console.print(f"mean {name}: {value:.3f}")


if __name__ == "__main__":
    raise SystemExit(main())

"""What does `rl.overlap` bring: rolling out for the next update while the learner makes this one?

    python benchmarks/overlap.py --from CHECKPOINT --json FILE [--profile NAME] [--iterations N] [--pairs N]

Whole RL stages from one SFT checkpoint, synchronous and overlapped in turn, alike in everything else. Seconds are those
from the end of the first iteration to the end of the last one, the final validation included. The two do not learn from
the same episodes (with overlap the acting policy is one update behind), so success is reported beside the seconds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from verdicts import machine

from gripline.atomic import write_whole

WAYS = {"synchronous": "false", "overlapped": "true"}
LATE = 5
"""Iterations at the end over which the rollouts' success is averaged."""
SETTINGS = (
    "splits.iid_per_task=4",
    "splits.ood_per_task=1",
    "splits.ablation_per_task=1",
    "eval.videos=0",
    "rl.checkpoint_every=1000",
    "rollout.trace_every=0",
    "promote.gate_head=off",
    "promote.gate_logprobs=off",
    "promote.gate_fit=off",
    "promote.gate_success=off",
)
"""What is not RL is made short: the lists of the evaluations before and after, the gate."""


@dataclass(frozen=True)
class Row:
    way: str
    seconds: float
    rollout_s: float
    """Sum over iterations; with overlap it runs beside the learner's."""
    learn_s: float
    env_steps: float
    late_success: float
    """Of sampled episodes in the last iterations."""
    validation_success: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="checkpoint", type=Path, required=True)
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--iterations", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    rows: list[Row] = []
    for pair in range(arguments.pairs):
        ways = list(WAYS) if pair % 2 == 0 else list(WAYS)[::-1]
        rows += [_run(arguments.profile, arguments.checkpoint.resolve(), arguments.iterations, way) for way in ways]
    ratios = _ratios(rows)
    result = {
        "profile": arguments.profile,
        "iterations": arguments.iterations,
        "machine": machine(),
        "rows": [asdict(row) for row in rows],
        "synchronous_over_overlapped_s": ratios,
    }
    write_whole(arguments.json, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    _show(rows, ratios)
    return 0


def _run(profile: str, checkpoint: Path, iterations: int, way: str) -> Row:
    """One whole RL stage. Raises CalledProcessError where the run fails; its output is on the console."""
    with tempfile.TemporaryDirectory(prefix="gripline-") as scratch:
        settings = (*SETTINGS, f"rl.iterations={iterations}", f"rl.validate_every={iterations}")
        command = [str(Path(sys.executable).with_name("gripline")), "run", profile, "--from", str(checkpoint)]
        command += ["--out", f"{scratch}/run"]
        for setting in (*settings, f"rl.overlap={WAYS[way]}", f"tracking.uri=sqlite:///{scratch}/mlflow.db"):
            command += ["--set", setting]
        subprocess.run(command, check=True)
        lines = Path(scratch, "run", "rl", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    points = [json.loads(line) for line in lines]
    return Row(
        way=way,
        seconds=points[-1]["seconds"] - points[0]["seconds"],
        rollout_s=sum(point["rollout/seconds"] for point in points[1:]),
        learn_s=sum(point["learn/seconds"] for point in points[1:]),
        env_steps=sum(point["rollout/env_steps"] for point in points[1:]),
        late_success=statistics.fmean(point["train/success"] for point in points[-LATE:]),
        validation_success=points[-1]["val/success"],
    )


def _ratios(rows: list[Row]) -> list[float]:
    """Synchronous over overlapped seconds, pair by pair: above 1, overlap is faster."""
    seconds = {way: [row.seconds for row in rows if row.way == way] for way in WAYS}
    return [one / other for one, other in zip(*seconds.values(), strict=True)]


def _show(rows: list[Row], ratios: list[float]) -> None:
    table = Table("way", "seconds", "rollout s", "learn s", "control steps", f"success, last {LATE}", "validation")
    for row in rows:
        parts = (f"{row.seconds:.1f}", f"{row.rollout_s:.1f}", f"{row.learn_s:.1f}", f"{row.env_steps:,.0f}")
        table.add_row(row.way, *parts, f"{row.late_success:.3f}", f"{row.validation_success:.3f}")
    console = Console()
    console.print(table)
    console.print(f"synchronous / overlapped: {', '.join(f'{ratio:.2f}' for ratio in ratios)}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())

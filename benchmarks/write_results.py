"""Put what the benchmarks measured into the documents: tables between markers, and the picture.

    python benchmarks/write_results.py build/laptop.json build/rollout.json

Filled in README.md and docs/results.md: whatever stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`, for the
names of `TABLES` (of benchmarks/laptop.py) and `ROLLOUT_TABLES` (of benchmarks/rollout.py). docs/result.png shows the
laptop run of the first seed.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gripline.splits import OOD_AXES, VISUAL_AXES
from gripline.summary import SHARED_SCENE, Difference, Summary
from gripline.tables import p_corrected

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "docs/results.md")
PICTURE = "docs/result.png"
AXES = (*VISUAL_AXES, *(axis for axis in OOD_AXES if axis not in VISUAL_AXES))


def main() -> None:
    """Write the documents of the repository, or of `--root`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="+", help="what benchmarks/laptop.py or benchmarks/rollout.py wrote")
    parser.add_argument("--root", type=Path, default=ROOT, help="where the documents are")
    arguments = parser.parse_args()
    for path in arguments.json:
        result = json.loads(path.read_text(encoding="utf-8"))
        tables = rollout_tables(result) if "rows" in result else laptop_tables(result)
        for name in DOCUMENTS:
            document = arguments.root / name
            document.write_text(fill(document.read_text(encoding="utf-8"), tables), encoding="utf-8")
        if "runs" in result:
            draw(Summary.model_validate(result["runs"][0]["summary"]), arguments.root / PICTURE)


def laptop_tables(result: dict[str, Any]) -> dict[str, list[str]]:
    """Marker -> lines, of what benchmarks/laptop.py wrote."""
    runs = [Summary.model_validate(run["summary"]) for run in result["runs"]]
    return {name: render(result, runs) for name, render in TABLES.items()}


def rollout_tables(result: dict[str, Any]) -> dict[str, list[str]]:
    """The same of benchmarks/rollout.py."""
    there = [name for name in ROLLOUT_TABLES if name != "rollout-calls" or "calls" in result]
    return {name: ROLLOUT_TABLES[name](result) for name in there}


def fill(text: str, tables: Mapping[str, Sequence[str]]) -> str:
    """The document with every table that it has markers for."""
    for name, lines in tables.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        if begin in text:
            before, _, rest = text.partition(begin)
            text = before + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2]
    return text


def draw(run: Summary, path: Path) -> None:
    """The picture of one run."""
    from components.eval.plots import success_and_difference

    success_and_difference(run).savefig(path, dpi=110)


def success_table(result: dict[str, Any], runs: Sequence[Summary]) -> list[str]:
    """One line for each training seed, and the mean."""
    names = ("seed", "SFT", "RL", "RL − SFT (95 %)", "p", *AXES, "black image", "other task's text, shared scene")
    lines = [_row(names), "|--:|--:|--:|---|--:|" + "--:|" * (len(AXES) + 2)]
    numbers = []
    for run in runs:
        paired, ablations = run.paired.iid, run.rl.ablations
        rest = [run.rl.ood[axis].success for axis in AXES]
        rest += [ablations[name].success for name in ("no_image", f"swapped_instruction{SHARED_SCENE}")]
        numbers.append([run.sft.iid.success, run.rl.iid.success, paired.difference, *rest])
        interval = f"[{paired.ci95[0]:+.2f}, {paired.ci95[1]:+.2f}]"
        cells = [str(run.seed), f"{run.sft.iid.success:.3f}", f"{run.rl.iid.success:.3f}"]
        cells += [f"{paired.difference:+.3f} {interval}", f"{paired.p:.0e}", *(f"{value:.2f}" for value in rest)]
        lines.append(_row(cells))
    sft, rl, gain, *rest = (sum(column) / len(runs) for column in zip(*numbers, strict=True))
    means = [f"**{sft:.3f}**", f"**{rl:.3f}**", f"**{gain:+.3f}**", "", *(f"{value:.2f}" for value in rest)]
    return [*lines, _row(["**mean**", *means])]


def axis_table(result: dict[str, Any], runs: Sequence[Summary]) -> list[str]:
    """For each OOD axis and seed, both policies and their difference."""
    lines = [_row(["axis", *(f"seed {run.seed}: SFT → RL, difference, p (Holm)" for run in runs)])]
    lines.append("|---|" + "---|" * len(runs))
    for axis in AXES:
        cells = [
            f"{run.sft.ood[axis].success:.2f} → {run.rl.ood[axis].success:.2f}, {_gain(run.paired.ood[axis])}"
            for run in runs
        ]
        lines.append(_row([axis, *cells]))
    return lines


def target_table(result: dict[str, Any], runs: Sequence[Summary] = ()) -> list[str]:
    """Every target with the worst that was measured."""
    lines = [_row(["target", "measured", ""]), "|---|---|---|"]
    for verdict in result["targets"]:
        target = f"{verdict['name']} {verdict['relation']} {verdict['limit']:g}"
        measured = f"{verdict['measured']:.3g} ({verdict['where']})"
        lines.append(_row([target, measured, "reached" if verdict["reached"] else "**missed**"]))
    return lines


def cost_table(result: dict[str, Any], runs: Sequence[Summary]) -> list[str]:
    """Seconds and memory of each run, and what it was measured on."""
    names = ("seed", "total s", "demonstrations", "SFT", "RL", "both evaluations", "peak memory, MB")
    lines = [_row([*names, "control steps in RL", "promoted", "commit"]), "|--:" * 8 + "|---|---|"]
    for run, stored in zip(runs, result["runs"], strict=True):
        spent = run.seconds
        seconds = (spent.total, spent.demos, spent.sft, spent.rl, spent.eval)
        refused = "; ".join(reason[2:] for reason in run.reasons if reason.startswith("✗"))
        cells = [str(run.seed), *(f"{value:.0f}" for value in seconds), f"{run.peak_memory_mb:.0f}"]
        cells += [f"{run.env_steps:,}", "yes" if run.promoted else f"no: {refused}", stored["commit"]]
        lines.append(_row(cells))
    machine = result["machine"]
    facts = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, Python {machine['python']}"
    return [*lines, "", f"Measured on: {facts}. Test lists: `splits.seed` {result['splits_seed']}."]


TABLES: dict[str, Callable[[dict[str, Any], Sequence[Summary]], list[str]]] = {
    "laptop": success_table,
    "laptop-axes": axis_table,
    "laptop-targets": target_table,
    "laptop-costs": cost_table,
}
"""Marker -> what is written there."""


def rollout_table(result: dict[str, Any]) -> list[str]:
    """One line for each case and engine."""
    names = ("case", "engine", "useful steps/s", "efficiency", "without overhead", "env busy", "policy busy")
    lines = [_row([*names, "steps after success"]), "|---|---|" + "--:|" * 6]
    for row in result["rows"]:
        cells = [row["case"], row["engine"].replace("_", "-"), f"{row['useful_steps_per_s']:,.0f}"]
        simulated = f"{row['bound_s'] / row['simulated_s']:.2f}" if row["engine"] == "gripline" else ""
        cells += [f"{row['efficiency']:.2f}", simulated, f"{row['env_busy']:.2f}", f"{row['policy_busy']:.2f}"]
        lines.append(_row([*cells, f"{row['dead_steps']:,}"]))
    return lines


def call_table(result: dict[str, Any]) -> list[str]:
    """One line for each way and pause."""
    lines = [_row(["way", "when", "small picture, ms", "256-px picture, ms"]), "|---|---|--:|--:|"]
    ms: dict[tuple[str, str], list[str]] = {}
    for call in result["calls"]:
        ms.setdefault((call["way"], call["pause"]), []).append(f"{call['ms']:.1f}")
    return [*lines, *(_row([*names, *cells]) for names, cells in ms.items())]


ROLLOUT_TABLES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "rollout": rollout_table,
    "rollout-targets": target_table,
    "rollout-calls": call_table,
}
"""Marker -> what is written there."""


def _gain(paired: Difference) -> str:
    return f"{paired.difference:+.2f}, {p_corrected(paired):.2g}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()

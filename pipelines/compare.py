"""`gripline compare`: runs beside each other, read from their folders or from MLflow, paired where episodes coincide.

What cannot be read or paired is told in one line each at the end; everything else is shown and written all the same.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gripline.comparison import (
    Comparison,
    Evaluation,
    Policy,
    compare_runs,
    is_total,
    row_label,
    row_names,
    success_text,
)
from gripline.errors import UserError
from gripline.evaluated_runs import read_evaluation, tracking_uri

if TYPE_CHECKING:
    from rich.table import Table

PICTURES = (".html", ".png")
INCOMPLETE = 2


def compare(runs: Sequence[str], policy: Policy, tracking: str, out: Sequence[Path], json_file: Path | None) -> int:
    """Read, compare, show and write. The first run is the baseline. Returns 0, or 2 when something was amiss.

    tracking: MLflow's URI; empty means the environment's, or that of a run folder. Raises UserError for a file that
    cannot be written, and when no run could be read.
    """
    for path in out:
        if path.suffix not in PICTURES:
            raise UserError(str(path), "--out", "is neither a page nor a picture", f"end it in {' or '.join(PICTURES)}")
    uri = tracking_uri(tracking, runs)
    found: list[Evaluation | None] = []
    problems: list[UserError] = []
    for run in runs:
        try:
            found.append(read_evaluation(run, policy, uri))
        except UserError as error:
            found.append(None)
            problems.append(error)
    if not any(found):
        _tell(error.line for error in problems[:-1])
        raise problems[-1]
    others = [evaluation for evaluation in found[1:] if evaluation is not None]
    comparison = compare_runs(found[0], others, [error.line for error in problems])
    _show(comparison)
    _write(comparison, out, json_file)
    _tell(comparison.problems)
    return INCOMPLETE if comparison.problems else 0


def _write(comparison: Comparison, out: Sequence[Path], json_file: Path | None) -> None:
    if json_file is not None:
        from gripline.atomic import write_whole

        write_whole(json_file, comparison.model_dump_json(indent=1) + "\n")
    if out:
        from components.eval.comparison_report import write_comparison

        for path in out:
            write_comparison(comparison, path)


def _show(comparison: Comparison) -> None:
    from rich.console import Console

    console = Console()
    console.print(success_table(comparison))
    for group in comparison.groups:
        runs, seeds = ", ".join(group.runs), ", ".join(map(str, group.seeds))
        console.print(f"\nInterquartile mean of {runs} (seeds {seeds}), in % [95 %]:", highlight=False, markup=False)
        for name, mean in group.interquartile_mean.items():
            low, high = mean.ci95
            shown = f"{100 * mean.mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            console.print(f"  {row_label(name):<16}{shown}  ({mean.num_tasks} tasks)", highlight=False, markup=False)
    for note in comparison.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False)


def success_table(comparison: Comparison) -> "Table":
    """One line for each row and run, 80 columns wide."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from gripline.tables import MDD_MEANS, colour, detectable_text, gain_text, p_cell

    title = Text("Success in % [95 % interval]", "italic")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("split and task", overflow="fold")
    table.add_column("run", overflow="fold")
    for name in ("n", "success", "difference", "MDD", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    if comparison.pairs:
        caption = f"difference: from {comparison.baseline}, on the same episodes. {MDD_MEANS}"
        table.caption, table.caption_justify = Text(caption, "dim italic"), "left"
    differences = {pair.run: pair.difference for pair in comparison.pairs}
    for name in row_names(comparison):
        label = row_label(name) if is_total(name) else f"  {row_label(name)}"
        style = "bold" if is_total(name) else "dim"
        for run in comparison.runs:
            if name not in run.success:
                continue
            rate = run.success[name]
            paired = differences[run.name].get(name) if run.name in differences else None
            changed = colour(paired) if is_total(name) else style
            cells = [label, run.name, "" if rate.n is None else str(rate.n), success_text(rate)]
            gain, p = Text(gain_text(paired), changed), Text("" if paired is None else p_cell(paired), changed)
            table.add_row(*(Text(cell, style) for cell in cells), gain, Text(detectable_text(paired), style), p)
            label = ""
    return table


def _tell(problems: Iterable[str]) -> None:
    for line in problems:
        print(f"gripline: {line}", file=sys.stderr)

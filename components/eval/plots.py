"""The report's pictures, as matplotlib figures and as parts of an HTML page; everyone can tell their colours apart."""

import base64
import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from gripline.summary import Ablation, Difference, PolicySummary, Rate, Summary
from gripline.tables import ALL_TASKS, Row, in_words, is_sure, rows

SFT_COLOUR, RL_COLOUR = "#d97706", "#2563eb"
GAIN_COLOUR, LOSS_COLOUR = "#15803d", "#b91c1c"
INK, QUIET, GRID, PAPER = "#1f2937", "#6b7280", "#e5e7eb", "#ffffff"
THEMED = {
    INK: "--ink",
    QUIET: "--quiet",
    GRID: "--line",
    PAPER: "--paper",
    GAIN_COLOUR: "--good",
    LOSS_COLOUR: "--bad",
    SFT_COLOUR: "--sft",
    RL_COLOUR: "--rl",
}
"""Colours of a figure that follow the page, which is dark where the reader wants that, by the page's names for them."""
MOST_COLUMNS_SIDE_BY_SIDE = 7
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": QUIET,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": QUIET,
    "ytick.color": INK,
    "xtick.bottom": False,
    "ytick.left": False,
    "grid.color": GRID,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "gripline",  # the same data give the same bytes
}
Curve = Sequence[dict[str, float]]
"""Rows of a metrics.jsonl file: `step` and named values."""


def success_and_difference(summary: Summary) -> Figure:
    """Left: success of both policies with Wilson intervals. Right: the paired difference with its interval."""
    shown = [row for row in rows(summary) if row.kind != "ablation" and (row.task == ALL_TASKS or row.kind == "iid")]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 1.1 + 0.42 * len(shown)), layout=ConstrainedLayoutEngine(wspace=0.06))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
        for y, row in enumerate(shown):
            _rate(left, y - 0.13, row.sft, SFT_COLOUR)
            _rate(left, y + 0.13, row.rl, RL_COLOUR)
            forest(right, y, row.paired)
        names = [row.split if row.task == ALL_TASKS else f"{row.split} · {row.task}" for row in shown]
        name_rows(left, [(name, row.task == ALL_TASKS) for name, row in zip(names, shown, strict=True)])
        left.set(xlim=(-2, 102), xlabel="success, %", title="Success, 95 % Wilson interval")
        right.axvline(0, color=QUIET, linewidth=1)
        right.set(xlabel="RL − SFT on the same episodes, points", title="Paired difference, 95 % interval")
        tidy(left)
        tidy(right)
        _legend(left)
    return figure


def heat_map(summary: Summary) -> Figure:
    """Success per task and split, one panel for each policy; one above the other where there are many splits."""
    axes_names = ["iid", *summary.rl.ood]
    tasks = list(summary.rl.per_task)
    stacked = len(axes_names) > MOST_COLUMNS_SIDE_BY_SIDE
    with matplotlib.rc_context(STYLE):
        height = 1.3 + 0.42 * len(tasks)
        figure = Figure(figsize=(10.4, 2 * height if stacked else height), layout="constrained")
        panels = figure.subplots(*((2, 1) if stacked else (1, 2)), sharey=True)
        for axes, policy, title in zip(panels, (summary.sft, summary.rl), ("SFT policy", "RL policy"), strict=True):
            _heat_panel(axes, policy, tasks, axes_names)
            axes.set_title(f"{title}, success in %")
    return figure


def slopes(summary: Summary) -> Figure:
    """One cell for each task and split: success of SFT and of RL on the same episodes, each with its Wilson interval.

    The line has a colour where the paired difference, written above it in points, is significant.
    """
    cells = {(row.task, row.split): row for row in rows(summary) if row.kind != "ablation"}
    names = list(dict.fromkeys(split for _, split in cells))
    tasks = [ALL_TASKS, *summary.rl.per_task]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 0.7 + 0.72 * len(tasks)), layout="constrained")
        axes = figure.subplots()
        _slope_cells(
            axes,
            [
                (x, y, cells[task, name])
                for y, task in enumerate(tasks)
                for x, name in enumerate(names)
                if (task, name) in cells
            ],
        )
        axes.set_xlim(0, len(names))
        axes.set_xticks([x + 0.5 for x in range(len(names))], [_wrapped(name) for name in names], color=INK)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        name_rows(axes, [(task, task == ALL_TASKS) for task in tasks], middle=0.5)
        for spine in axes.spines.values():
            spine.set_visible(False)
        _legend(axes, above=1 + 0.55 / len(tasks))
    return figure


def ablations(summary: Summary) -> Figure:
    """What is left without an input: a dot near zero is a policy that needs it."""
    shown = [row for row in rows(summary) if row.kind == "ablation"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 1.1 + 0.3 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for y, row in enumerate(shown):
            for rate, offset, colour in ((row.sft, -0.13, SFT_COLOUR), (row.rl, 0.13, RL_COLOUR)):
                _rate(axes, y + offset, rate, colour)
                if isinstance(rate, Ablation):
                    axes.plot(100 * rate.intact, y + offset, "|", color=colour, markersize=7, markeredgewidth=2)
            if row.task == ALL_TASKS and y:
                axes.axhline(y - 0.5, color=GRID, linewidth=1)
        name_rows(axes, [(row.split if row.task == ALL_TASKS else row.task, row.task == ALL_TASKS) for row in shown])
        axes.set(xlim=(-2, 102), xlabel="success, %")
        axes.set_title("Success on IID episodes with one input taken away")
        tidy(axes)
        _legend(axes)
    return figure


def training_curves(sft_curve: Curve, rl_curve: Curve) -> Figure:
    """SFT: loss on training and held-out demonstrations. RL: success of sampled and of validation episodes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 3.1), layout="constrained")
        sft, rl = figure.subplots(1, 2)
        curve_line(sft, sft_curve, "train/loss", SFT_COLOUR, "training", alpha=0.45)
        curve_line(sft, sft_curve, "held_out/loss", INK, "held out", marker="o")
        sft.set(xlabel="step", title="SFT: token cross-entropy")
        curve_line(rl, rl_curve, "train/success", RL_COLOUR, "sampled, training states", alpha=0.45, scale=100)
        curve_line(rl, rl_curve, "val/success", INK, "greedy, validation states", marker="o", scale=100)
        rl.set(xlabel="iteration", ylim=(-2, 102), title="RL: success in %")
        for axes in (sft, rl):
            axes.grid(axis="y")
            if axes.lines:
                axes.legend()
            else:
                axes.text(0.5, 0.5, "no curve: this stage did not run here", transform=axes.transAxes, ha="center")
    return figure


def inline_svg(figure: Figure) -> str:
    """The figure as an <svg> element that scales with the page and takes the page's colours."""
    sink = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = sink.getvalue()
    for colour, variable in THEMED.items():
        text = text.replace(f": {colour}", f": var({variable})")
    return text[text.index("<svg") :].strip()


def on_page(colour: str) -> str:
    """A figure's colour as the page writes it."""
    return f"var({THEMED[colour]})" if colour in THEMED else colour


def data_uri(content: bytes, mime: str) -> str:
    """Bytes as a URI that needs no file."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def interval(
    axes: Axes, y: float, value: float, ci95: tuple[float, float] | None, colour: str, marker: str = "o"
) -> None:
    """A rate and its interval, in per cent, on row `y`."""
    if ci95 is not None:
        low, high = ci95
        axes.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=3, alpha=0.35, solid_capstyle="round")
    axes.plot(100 * value, y, marker, color=colour, markersize=6, markeredgecolor=PAPER, markeredgewidth=0.8)


def forest(axes: Axes, y: float, paired: Difference | None, colour: str = INK, marker: str = "s") -> None:
    """A paired difference and its interval, in points, on row `y`; filled where the interval excludes zero."""
    if paired is None:
        return
    low, high = (100 * bound for bound in paired.ci95)
    sure = not low <= 0 <= high
    axes.plot([low, high], [y, y], color=colour, linewidth=1.6, alpha=1 if sure else 0.4)
    face, alpha = (colour, 1.0) if sure else (PAPER, 0.6)
    axes.plot(100 * paired.difference, y, marker, color=colour, markerfacecolor=face, markersize=5, alpha=alpha)


def _rate(axes: Axes, y: float, rate: Rate | None, colour: str) -> None:
    if rate is not None:
        interval(axes, y, rate.success, rate.ci95, colour)


def _slope_cells(axes: Axes, cells: Sequence[tuple[int, int, Row]]) -> None:
    """Each in the unit square at (x, y): the difference at the top, below it a scale from 100 down to 0 %."""
    background = [Rectangle((x + 0.03, y + 0.04), 0.94, 0.92) for x, y, _ in cells]
    axes.add_collection(PatchCollection(background, facecolor=GRID, alpha=0.35, linewidth=0))
    middle = [[(x + 0.1, y + HALF), (x + 0.9, y + HALF)] for x, y, _ in cells]
    axes.add_collection(LineCollection(middle, colors=GRID, linewidths=0.8))
    colours = [_verdict_colour(row.paired) for _, _, row in cells]
    changes = [
        ([(x + 0.28, y + _down(row.sft.success)), (x + 0.72, y + _down(row.rl.success))], colour)
        for (x, y, row), colour in zip(cells, colours, strict=True)
        if row.sft is not None and row.rl is not None
    ]
    axes.add_collection(
        LineCollection(
            [line for line, _ in changes],
            colors=[colour for _, colour in changes],
            linewidths=[1.2 if colour == QUIET else 2 for _, colour in changes],
        )
    )
    _slope_ends(axes, [(x + 0.28, y, row.sft) for x, y, row in cells if row.sft is not None], SFT_COLOUR)
    _slope_ends(axes, [(x + 0.72, y, row.rl) for x, y, row in cells if row.rl is not None], RL_COLOUR)
    for (x, y, row), colour in zip(cells, colours, strict=True):
        text = "–" if row.paired is None else f"{100 * row.paired.difference:+.0f}".replace("-", "−")
        weight = "normal" if colour == QUIET else "bold"
        inside(axes, x + 0.5, y + 0.17, text, fontsize=7.5, color=colour, fontweight=weight)


def _slope_ends(axes: Axes, ends: Sequence[tuple[float, int, Rate]], colour: str) -> None:
    intervals = [[(x, y + _down(bound)) for bound in rate.ci95] for x, y, rate in ends]
    axes.add_collection(LineCollection(intervals, colors=colour, linewidths=2.4, alpha=0.4))
    heights = [y + _down(rate.success) for _, y, rate in ends]
    axes.plot([x for x, _, _ in ends], heights, "o", color=colour, markersize=4.5)


def _down(rate: float) -> float:
    """How far below a cell's top a success rate lies."""
    return 0.92 - 0.62 * rate


HALF = _down(0.5)


def _verdict_colour(paired: Difference | None) -> str:
    if paired is None or not is_sure(paired):
        return QUIET
    return GAIN_COLOUR if paired.difference > 0 else LOSS_COLOUR


def inside(axes: Axes, x: float, y: float, text: str, **looks: Any) -> None:
    """Text in the middle of something that is drawn: it takes no room of its own, which makes the layout fast."""
    axes.text(x, y, text, ha="center", va="center", **looks).set_in_layout(False)


def _wrapped(name: str) -> str:
    """A name in lines of a cell's width."""
    return "\n".join(textwrap.wrap(name, 11))


def _heat_panel(axes: Axes, policy: PolicySummary, tasks: list[str], names: list[str]) -> None:
    def rate(task: str, name: str) -> Rate | None:
        own = policy.per_task.get(task)
        if own is None:
            return None
        return own.iid if name == "iid" else own.ood.get(name)

    grid = [[rate(task, name) for name in names] for task in tasks]
    values = [[float("nan") if cell is None else 100 * cell.success for cell in line] for line in grid]
    axes.pcolormesh(values, cmap="Blues", vmin=0, vmax=100, edgecolors=PAPER, linewidth=2)
    axes.set_ylim(len(tasks), 0)
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            text = "–" if value != value else f"{value:.0f}"
            colour = QUIET if value != value else "#fefefe" if value > 70 else "#101010"
            inside(axes, x + 0.5, y + 0.5, text, color=colour)
    labels = ["IID" if name == "iid" else _wrapped(in_words(name)) for name in names]
    axes.set_xticks([x + 0.5 for x in range(len(names))], labels)
    axes.xaxis.tick_top()
    axes.set_yticks([y + 0.5 for y in range(len(tasks))], tasks)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def curve_line(
    axes: Axes,
    curve: Curve,
    name: str,
    colour: str,
    label: str,
    *,
    alpha: float = 1,
    scale: float = 1,
    marker: str = "",
) -> None:
    """Those rows of a curve that have the metric."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    points = [(row["step"], scale * row[name]) for row in curve if name in row]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colour, alpha=alpha, label=label, marker=marker, markersize=3.5, linewidth=1.6)


def name_rows(axes: Axes, names: Sequence[tuple[str, bool]], middle: float = 0) -> None:
    """Label rows 0, 1, … from the top; true: in bold. middle: where row 0 has its own."""
    axes.set_yticks([y + middle for y in range(len(names))], [name for name, _ in names])
    axes.set_ylim(len(names) - 0.5 + middle, middle - 0.5)
    for label, (_, bold) in zip(axes.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if bold else "normal")


def tidy(axes: Axes) -> None:
    """Rows without a frame, on a grid."""
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def _legend(axes: Axes, above: float = 1) -> None:
    """above: where the legend's foot lies, as a share of the panel's height."""
    for name, colour in (("SFT", SFT_COLOUR), ("RL", RL_COLOUR)):
        axes.plot([], [], "o", color=colour, label=name, markersize=6)
    axes.legend(loc="lower right", bbox_to_anchor=(1, above), ncols=2, borderpad=0, handletextpad=0.1)

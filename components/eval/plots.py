"""The report's pictures, as matplotlib figures and as parts of an HTML page; everyone can tell their colours apart."""

import base64
import io
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from gripline.summary import Ablation, Difference, PolicySummary, Rate, Summary
from gripline.tables import ALL_TASKS, rows

SFT_COLOUR, RL_COLOUR = "#d97706", "#2563eb"
INK, QUIET, GRID = "#1f2937", "#6b7280", "#e5e7eb"
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
    """Success per task and split, one panel for each policy."""
    axes_names = ["iid", *summary.rl.ood]
    tasks = list(summary.rl.per_task)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 1.2 + 0.42 * len(tasks)), layout="constrained")
        for axes, policy, title in zip(
            figure.subplots(1, 2, sharey=True), (summary.sft, summary.rl), ("SFT policy", "RL policy"), strict=True
        ):
            _heat_panel(axes, policy, tasks, axes_names)
            axes.set_title(f"{title}, success in %")
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
        _line(sft, sft_curve, "train/loss", SFT_COLOUR, "training", alpha=0.45)
        _line(sft, sft_curve, "held_out/loss", INK, "held out", marker="o")
        sft.set(xlabel="step", title="SFT: token cross-entropy")
        _line(rl, rl_curve, "train/success", RL_COLOUR, "sampled, training states", alpha=0.45, scale=100)
        _line(rl, rl_curve, "val/success", INK, "greedy, validation states", marker="o", scale=100)
        rl.set(xlabel="iteration", ylim=(-2, 102), title="RL: success in %")
        for axes in (sft, rl):
            axes.grid(axis="y")
            if axes.lines:
                axes.legend()
            else:
                axes.text(0.5, 0.5, "no curve: this stage did not run here", transform=axes.transAxes, ha="center")
    return figure


def inline_svg(figure: Figure) -> str:
    """The figure as an <svg> element that scales with the page."""
    sink = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = sink.getvalue()
    return text[text.index("<svg") :].strip()


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
    axes.plot(100 * value, y, marker, color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.8)


def forest(axes: Axes, y: float, paired: Difference | None, colour: str = INK, marker: str = "s") -> None:
    """A paired difference and its interval, in points, on row `y`; filled where the interval excludes zero."""
    if paired is None:
        return
    low, high = (100 * bound for bound in paired.ci95)
    sure = not low <= 0 <= high
    axes.plot([low, high], [y, y], color=colour, linewidth=1.6, alpha=1 if sure else 0.4)
    face, alpha = (colour, 1.0) if sure else ("white", 0.6)
    axes.plot(100 * paired.difference, y, marker, color=colour, markerfacecolor=face, markersize=5, alpha=alpha)


def _rate(axes: Axes, y: float, rate: Rate | None, colour: str) -> None:
    if rate is not None:
        interval(axes, y, rate.success, rate.ci95, colour)


def _heat_panel(axes: Axes, policy: PolicySummary, tasks: list[str], names: list[str]) -> None:
    def rate(task: str, name: str) -> Rate | None:
        own = policy.per_task.get(task)
        if own is None:
            return None
        return own.iid if name == "iid" else own.ood.get(name)

    grid = [[rate(task, name) for name in names] for task in tasks]
    values = [[float("nan") if cell is None else 100 * cell.success for cell in line] for line in grid]
    axes.pcolormesh(values, cmap="Blues", vmin=0, vmax=100, edgecolors="white", linewidth=2)
    axes.set_ylim(len(tasks), 0)
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            text = "–" if value != value else f"{value:.0f}"
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color="white" if value > 55 else INK)
    axes.set_xticks([x + 0.5 for x in range(len(names))], ["IID" if name == "iid" else name for name in names])
    axes.xaxis.tick_top()
    axes.set_yticks([y + 0.5 for y in range(len(tasks))], tasks)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _line(
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
    points = [(row["step"], scale * row[name]) for row in curve if name in row]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colour, alpha=alpha, label=label, marker=marker, markersize=3.5, linewidth=1.6)


def name_rows(axes: Axes, names: Sequence[tuple[str, bool]]) -> None:
    """Label rows 0, 1, … from the top; true: in bold."""
    axes.set_yticks(range(len(names)), [name for name, _ in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    for label, (_, bold) in zip(axes.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if bold else "normal")


def tidy(axes: Axes) -> None:
    """Rows without a frame, on a grid."""
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def _legend(axes: Axes) -> None:
    for name, colour in (("SFT", SFT_COLOUR), ("RL", RL_COLOUR)):
        axes.plot([], [], "o", color=colour, label=name, markersize=6)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderpad=0, handletextpad=0.1)

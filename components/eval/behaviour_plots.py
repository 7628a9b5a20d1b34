"""The report's pictures of failures and conduct."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from components.eval.behaviour import MEASURES, UNCLASSIFIED, Conduct, Failures, failures_by
from components.eval.plots import (
    INK,
    PAPER,
    QUIET,
    RL_COLOUR,
    SFT_COLOUR,
    STYLE,
    Curve,
    curve_line,
    inside,
    name_rows,
    tidy,
)
from gripline.failures import FAILURES
from gripline.tables import ALL_TASKS, in_words
from gripline.types import EpisodeRecord

PALETTE = ("#4477aa", "#66ccee", "#ccbb44", "#228833", "#ee6677", "#aa3377", "#bbbbbb")
"""Tol's "bright" scheme: everyone can tell them apart."""
COLOURS = dict(zip(FAILURES, PALETTE, strict=True)) | {UNCLASSIFIED: QUIET}
LIGHT = ("#66ccee", "#ccbb44", "#ee6677", "#bbbbbb")
"""Those on which a number is black."""
POLICIES = (("SFT", SFT_COLOUR), ("RL", RL_COLOUR))
WIDE_ENOUGH_PERCENT = 6.0
"""A part of a bar that has room for its number."""
SOURCES = {"train": "sampled, training states", "val": "greedy, validation states"}


def failures(sft_records: Sequence[EpisodeRecord], rl_records: Sequence[EpisodeRecord]) -> Figure:
    """Share of episodes that failed in each way: left by task, right by split; SFT above RL."""
    evaluations = (sft_records, rl_records)
    by_task = [failures_by(records) | failures_by(records, lambda each: each.spec.task) for records in evaluations]
    by_axis = [failures_by(records, _split) for records in evaluations]
    longest = max(len(by_task[1]), len(by_axis[1]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 1.3 + 0.46 * longest), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axes, counts, title in ((left, by_task, "By task, IID and OOD"), (right, by_axis, "By split, all tasks")):
            _stacked_rows(axes, counts)
            axes.set(title=title, xlabel="failed episodes, %")
            tidy(axes)
        limit = 1.12 * max(
            100 * sum(each.by_type.values()) / each.n for own in by_task + by_axis for each in own.values()
        )
        left.set_xlim(0, max(limit, 1))
        right.set_xlim(0, max(limit, 1))
        shown = [name for name in COLOURS if any(name in each.by_type for own in by_task for each in own.values())]
        _legend_above(figure, _patches(shown))
    return figure


def conduct(measures: Sequence[Conduct]) -> Figure:
    """One panel for each measure: how it is spread over the IID episodes of either policy."""
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(len(measures), 1.55)
        for axes, each in zip(panels, measures, strict=True):
            _boxes(axes, each)
    return figure


def guard(rl_curve: Curve) -> Figure | None:
    """How sampled and validation episodes failed and moved while RL went on; None in a curve of before there were such
    metrics (`guard/train/failure/TYPE`, `guard/val/conduct/QUANTITY`, …)."""
    names = {name for row in rl_curve for name in row if name.startswith("guard/")}
    quantities = [each for each in MEASURES if any(name.endswith(f"/conduct/{each.name}") for name in names)]
    has_failures = any("/failure/" in name for name in names)
    if not quantities and not has_failures:
        return None
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(len(quantities) + has_failures, 2.5)
        handles: dict[str, Artist] = _failure_shares(panels.pop(0), rl_curve) if has_failures else {}
        for axes, each in zip(panels, quantities, strict=True):
            for source, colour, marker in (("train", RL_COLOUR, ""), ("val", INK, "o")):
                curve_line(
                    axes,
                    rl_curve,
                    f"guard/{source}/conduct/{each.name}",
                    colour,
                    SOURCES[source],
                    scale=each.scale,
                    marker=marker,
                )
            handles |= {str(line.get_label()): line for line in axes.lines}
            axes.set_title(each.label, fontsize=8.5)
            axes.set_ylabel(each.unit, fontsize=8)
            axes.grid(axis="y")
        _legend_above(figure, handles, rows=2)
        note = " (movement: of successful episodes)" if quantities else ""
        figure.supxlabel(f"iteration{note}", fontsize=9, color=QUIET)
    return figure


def _patches(names: Sequence[str]) -> dict[str, Artist]:
    return {name: Patch(facecolor=COLOURS[name], label=in_words(name)) for name in names}


def _legend_above(figure: Figure, handles: Mapping[str, Artist], rows: int = 1) -> None:
    """Outside of the panels, where it hides nothing."""
    columns = math.ceil(len(handles) / rows)
    if handles:
        figure.legend(
            handles=list(handles.values()), loc="outside upper left", ncols=columns, handlelength=1, columnspacing=1.4
        )


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, at most three beside each other; height: of one, in inches."""
    columns = 2 if count in (2, 4) else min(count, 3)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(10.4, height * lines), layout=ConstrainedLayoutEngine(h_pad=0.08))
    panels = list(figure.subplots(lines, columns, squeeze=False).flatten())
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def _failure_shares(axes: Axes, rl_curve: Curve) -> dict[str, Artist]:
    """Stacked shares of the sampled episodes that failed in each way; returns the legend's part of it."""
    shown = [row for row in rl_curve if f"guard/train/failure/{FAILURES[0]}" in row]
    shares = {name: [100 * row[f"guard/train/failure/{name}"] for row in shown] for name in FAILURES}
    occurring = [name for name in FAILURES if any(shares[name])]
    if occurring:
        steps = [row["step"] for row in shown]
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.stackplot(steps, *(shares[name] for name in occurring), colors=[COLOURS[name] for name in occurring])
    axes.set_title("Sampled episodes that failed, %", fontsize=8.5)
    axes.set_ylim(bottom=0)
    return _patches(occurring)


def _split(record: EpisodeRecord) -> str:
    return "IID" if record.spec.split == "iid" else in_words(record.spec.axis)


def _stacked_rows(axes: Axes, counts: Sequence[dict[str, Failures]]) -> None:
    """counts: of SFT and of RL."""
    names = list(dict.fromkeys(name for own in counts for name in own))
    bars: list[tuple[float, Failures]] = []
    for (policy, _), own, offset in zip(POLICIES, counts, (-0.19, 0.19), strict=True):
        bars += [(y + offset, own[name]) for y, name in enumerate(names) if name in own]
        for y, name in enumerate(names):
            if name in own:
                _beside(axes, (0, y + offset), policy, -4, color=INK)
    ends = np.zeros(len(bars))
    rows: list[float] = [row for row, _ in bars]
    for kind, colour in COLOURS.items():
        counted = [failed.by_type.get(kind, 0) for _, failed in bars]
        widths = np.array([100 * count / failed.n for count, (_, failed) in zip(counted, bars, strict=True)])
        if widths.any():
            axes.barh(rows, widths, left=ends, height=0.34, color=colour, edgecolor=PAPER, linewidth=0.6)
        ink = "#101010" if colour in LIGHT else "#fefefe"
        for row, left, width, count in zip(rows, ends, widths, counted, strict=True):
            if width >= WIDE_ENOUGH_PERCENT:
                inside(axes, left + width / 2, row, str(count), fontsize=7, color=ink)
        ends += widths
    for row, end in zip(rows, ends, strict=True):
        _beside(axes, (end, row), f"{end:.0f} %", 3, color=INK)
    name_rows(axes, [(name or ALL_TASKS, name in ("", "IID")) for name in names])
    axes.tick_params(axis="y", pad=24)


def _beside(axes: Axes, point: tuple[float, float], text: str, points: float, **looks: Any) -> None:
    """Small text so many points right of a place; left of it where negative."""
    side = "right" if points < 0 else "left"
    axes.annotate(
        text, point, xytext=(points, 0), textcoords="offset points", ha=side, va="center", fontsize=7, **looks
    ).set_in_layout(False)


def _boxes(axes: Axes, each: Conduct) -> None:
    drawn = axes.boxplot(
        [each.sft, each.rl],
        orientation="horizontal",
        positions=[0, 1],
        widths=0.5,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        medianprops={"color": INK, "linewidth": 1.6},
    )
    for box, (_, colour) in zip(drawn["boxes"], POLICIES, strict=True):
        box.set(facecolor=colour, alpha=0.45, edgecolor=colour)
    for place, (_, colour) in enumerate(POLICIES):
        for part in (*drawn["whiskers"][2 * place : 2 * place + 2], *drawn["caps"][2 * place : 2 * place + 2]):
            part.set_color(colour)
    name_rows(axes, [(policy, False) for policy, _ in POLICIES])
    better = "more is better" if each.measure.more_is_better else "less is better"
    axes.set_title(each.measure.label, fontsize=9)
    axes.set_xlabel(f"{each.measure.unit} ({better})", fontsize=8)
    tidy(axes)

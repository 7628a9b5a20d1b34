"""The picture of a rollout: what every slot did, which batches the policy served, how busy both were."""

import html as markup
import io
from collections import defaultdict
from collections.abc import Iterable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path

from gripline.rollout.trace import TraceEvent, natural_order

MAX_ROWS = 72
"""More slots than this are not drawn; the title says so."""
NUMBER_WIDTH_IN = 0.16
"""A batch that is drawn wider than this carries its number of rows."""
OVERLAP_S = 1e-4
"""Events that share less than this follow one another: clocks are not read at the very same time."""
BINS = 60
WIDTH_IN = 15.0
INK, QUIET, GRID, BATCH = "#1f2937", "#6b7280", "#e5e7eb", "#7c3aed"
COLOURS = {"step": "#2563eb", "reset": "#f59e0b", "wait": "#e5e7eb", "parked": "#86efac"}
NAMES = {"step": "steps", "reset": "resets", "wait": "waits for actions", "parked": "parked with its first observation"}
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "ytick.left": False,
    "grid.color": GRID,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "gripline",  # the same events give the same bytes
}
Box = tuple[float, float, float, float]
"""left, right, bottom, top."""


def figure(events: list[TraceEvent], name: str) -> Figure:
    """Slots as rows in groups of workers, policy batches as bars of their number of rows, and the busy shares."""
    start_s = min(event.start_s for event in events)
    span_s = max(max(event.end_s for event in events) - start_s, 1e-6)
    events = [event._replace(start_s=event.start_s - start_s, end_s=event.end_s - start_s) for event in events]
    batches = [event for event in events if event.kind == "batch"]
    slots = [event for event in events if event.kind != "batch"]
    lanes = sorted({event.lane for event in slots}, key=natural_order)
    policies = sorted({event.lane for event in batches}, key=natural_order)
    shown = lanes[:MAX_ROWS]
    row_in = 0.24 if len(shown) <= 16 else 0.11
    heights = [max(row_in * len(shown), 0.5), max(0.8 * len(policies), 0.5), 1.0]
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(WIDTH_IN, sum(heights) + 1.5), layout="constrained")
        top, middle, bottom = drawn.subplots(3, 1, sharex=True, height_ratios=heights)
        _slots(top, slots, shown)
        _batches(middle, batches, policies, span_s)
        env_busy, policy_busy = _busy_shares(bottom, slots, batches, len(policies), span_s)
        bottom.set(xlim=(0, span_s), xlabel="seconds")
        title = f"{name} · {span_s:.1f} s · env busy {env_busy:.0%} · policy busy {policy_busy:.0%}"
        if len(shown) < len(lanes):
            title += f" · the first {len(shown)} of {len(lanes)} slots are drawn, the shares count all"
        drawn.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return drawn


def png(drawn: Figure) -> bytes:
    """The picture as a PNG file."""
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        drawn.savefig(out, format="png", dpi=110)
    return out.getvalue()


def html(drawn: Figure, name: str) -> str:
    """The picture as a page by itself: the drawing scales, so that the browser's zoom shows every step."""
    out = io.StringIO()
    with matplotlib.rc_context(STYLE):
        drawn.savefig(out, format="svg", metadata={"Date": None})
    drawing = out.getvalue()[out.getvalue().index("<svg") :]
    return (
        f'<!doctype html>\n<meta charset="utf-8"><title>{markup.escape(name)}: timeline of the rollout</title>\n'
        f"<style>body {{ margin: 0 }} svg {{ width: 100%; min-width: 1200px; height: auto }}</style>\n{drawing}\n"
    )


def _slots(axes: Axes, events: list[TraceEvent], lanes: list[str]) -> None:
    rows = {lane: row for row, lane in enumerate(lanes)}
    for kind, colour in COLOURS.items():
        boxes = [
            (event.start_s, event.end_s, rows[event.lane] - 0.42, rows[event.lane] + 0.42)
            for event in events
            if event.kind == kind and event.lane in rows
        ]
        _fill(axes, boxes, colour)
    workers: dict[str, list[int]] = defaultdict(list)
    for lane, row in rows.items():
        workers[lane.partition("/")[0]].append(row)
    for members in list(workers.values())[1:]:
        axes.axhline(members[0] - 0.5, color=QUIET, linewidth=0.6)
    axes.set_yticks([(members[0] + members[-1]) / 2 for members in workers.values()], list(workers))
    axes.set_ylim(len(lanes) - 0.5, -0.5)
    legend = [Patch(color=colour, label=NAMES[kind]) for kind, colour in COLOURS.items()]
    legend.append(Patch(facecolor="white", edgecolor=GRID, label="empty, or queued for its turn to step"))
    axes.legend(handles=legend, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(legend), borderaxespad=0.2)


def _batches(axes: Axes, events: list[TraceEvent], lanes: list[str], span_s: float) -> None:
    """A bar for each batch, as high as its number of rows; written into it where there is room."""
    largest = max((int(event.label) for event in events), default=1)
    rows = {lane: row for row, lane in enumerate(lanes)}
    boxes = []
    for event in events:
        floor = rows[event.lane] + 0.5
        boxes.append((event.start_s, event.end_s, floor, floor - 0.9 * int(event.label) / largest))
        if (event.end_s - event.start_s) / span_s * WIDTH_IN > NUMBER_WIDTH_IN:
            middle_s = (event.start_s + event.end_s) / 2
            axes.text(middle_s, floor - 0.04, event.label, color="white", ha="center", va="bottom", fontsize=7)
    _fill(axes, boxes, BATCH)
    axes.set_yticks(list(rows.values()), [f"{lane}\nbatches ≤ {largest}" for lane in lanes])
    axes.set_ylim(max(len(lanes), 1) - 0.5, -0.5)


def _busy_shares(
    axes: Axes, slots: list[TraceEvent], batches: list[TraceEvent], num_policies: int, span_s: float
) -> tuple[float, float]:
    """Draws the shares over time; returns (env busy, policy busy) of the whole span.

    Capacity is the number of simulators of each worker that ever ran at the same time: one where a worker steps its
    slots in turn.
    """
    working = [event for event in slots if event.kind in ("step", "reset")]
    by_worker: dict[str, list[TraceEvent]] = defaultdict(list)
    for event in working:
        by_worker[event.lane.partition("/")[0]].append(event)
    capacity = sum(_most_at_once(events) for events in by_worker.values())
    edges_s = np.linspace(0, span_s, BINS + 1)
    means = []
    for label, colour, events, places in (
        ("env busy", COLOURS["step"], working, capacity),
        ("policy busy", BATCH, batches, num_policies),
    ):
        busy = np.diff(_busy_until(events, edges_s)) / np.diff(edges_s) / max(places, 1)
        axes.stairs(100 * busy, edges_s, color=colour, label=label, linewidth=1.2)
        means.append(float(busy.mean()))
    axes.set(ylim=(0, 104), ylabel="busy, %")
    axes.grid(axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.0)
    return means[0], means[1]


def _busy_until(events: list[TraceEvent], times_s: np.ndarray) -> np.ndarray:
    """Seconds of all events that lie before each time."""
    starts_s = np.array([event.start_s for event in events])[:, None]
    ends_s = np.array([event.end_s for event in events])[:, None]
    before_s: np.ndarray = np.clip(times_s, starts_s, ends_s).sum(axis=0) - starts_s.sum()
    return before_s


def _most_at_once(events: list[TraceEvent]) -> int:
    """The largest number of events at one time; one that begins when another ends is not at its time."""
    ends = [(max(event.end_s - OVERLAP_S, event.start_s), -1) for event in events]
    changes = sorted(ends + [(event.start_s, 1) for event in events])
    return max(int(np.cumsum([change for _, change in changes]).max()), 1)


def _fill(axes: Axes, boxes: Iterable[Box], colour: str) -> None:
    """All boxes as one path: thousands of shapes of their own would make the drawing slow and the page large."""
    corners = [[(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)] for x0, x1, y0, y1 in boxes]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(corners)
    if corners:
        axes.add_patch(PathPatch(Path(np.concatenate(corners), codes), facecolor=colour, linewidth=0))

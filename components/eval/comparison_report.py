"""Compared runs for people: one picture, and one HTML file that needs nothing else."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from components.eval import plots
from components.eval.behaviour import MEASURES, number
from gripline import tables
from gripline.atomic import whole, write_whole
from gripline.comparison import Comparison, is_total, row_label, row_names, success_text
from gripline.failures import FAILURES
from gripline.tables import in_words

COLOURS = ("#1f2937", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""After Okabe and Ito: everyone can tell them apart. The first is the baseline's."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
"""One more than colours, so that no two of the first 56 runs look the same."""
ROW_INCHES, RUN_INCHES = 0.26, 0.13


def picture(comparison: Comparison) -> Figure:
    """Success of each run, the paired differences from the baseline, and the means over training seeds."""
    names = row_names(comparison)
    panels = [3, *([2] if comparison.pairs else []), *([2] if comparison.groups else [])]
    longest = max(len(comparison.runs), len(comparison.groups))
    with matplotlib.rc_context(plots.STYLE):
        height = 1.3 + len(names) * (ROW_INCHES + RUN_INCHES * longest)
        figure = Figure(figsize=(3.2 + 1.8 * sum(panels), height), layout="constrained")
        axes = iter(figure.subplots(1, len(panels), sharey=True, width_ratios=panels, squeeze=False)[0])
        first = next(axes)
        plots.name_rows(first, [(row_label(name), is_total(name)) for name in names])
        _success(first, comparison, names)
        if comparison.pairs:
            _differences(next(axes), comparison, names)
        if comparison.groups:
            _seed_means(next(axes), comparison, names)
        figure.legend(*_legend(comparison), loc="outside upper left", ncols=3, alignment="left")
    return figure


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the page (.html) or the picture (.png), whole or not at all. Raises UserError when the disk refuses it."""
    if path.suffix == ".png":
        with whole(path) as temporary:
            picture(comparison).savefig(temporary, format="png", dpi=130)
    else:
        write_whole(path, render_html(comparison))


def render_html(comparison: Comparison) -> str:
    """The page. The picture is embedded; nothing is loaded from anywhere."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("components.eval"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"points": tables.points, "label": row_label}
    environment.globals |= {
        name: getattr(tables, name)
        for name in ("MDD_MEANS", "bootstrap_text", "detectable_text", "gain_text", "is_sure", "p_cell")
    }
    page: str = environment.get_template("comparison.html").render(
        comparison=comparison,
        names=row_names(comparison),
        is_total=is_total,
        success_text=success_text,
        differences={pair.run: pair.difference for pair in comparison.pairs},
        marks={name: plots.on_page(colour) for name, (colour, _) in _looks(comparison).items()},
        behaviour=_behaviour(comparison),
        picture=Markup(plots.inline_svg(picture(comparison))),
        colours={"sft": plots.SFT_COLOUR, "rl": plots.RL_COLOUR},
    )
    return page


def _behaviour(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Rows of failure types and of conduct, with one text for each run; none unless two runs or more know of them."""
    rows: list[tuple[str, list[str]]] = []
    typed = [run for run in comparison.runs if run.failures]
    if len(typed) > 1:
        for name in FAILURES:
            if any(name in run.failures for run in typed):
                counts = [str(run.failures.get(name, 0)) if run.failures else "–" for run in comparison.runs]
                rows.append((in_words(name), counts))
    for measure in MEASURES:
        values = [run.conduct.get(measure.name) for run in comparison.runs]
        if sum(value is not None for value in values) > 1:
            texts = ["–" if value is None else number(measure.scale * value) for value in values]
            rows.append((f"{measure.label}, {measure.unit}", texts))
    return rows


def _looks(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Colour and marker of each run."""
    return {
        run.name: (COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])
        for index, run in enumerate(comparison.runs)
    }


def _group_looks(comparison: Comparison) -> list[tuple[str, str]]:
    """Of the means over seeds: colours that the runs have not, as far as they reach."""
    taken = len(comparison.runs)
    return [(COLOURS[(taken + index) % len(COLOURS)], "h") for index in range(len(comparison.groups))]


def _legend(comparison: Comparison) -> tuple[list[Line2D], list[str]]:
    looks = _looks(comparison)
    labels = [f"{name} (baseline)" if name == comparison.baseline else name for name in looks]
    groups = [f"mean of {group.name}, seeds {', '.join(map(str, group.seeds))}" for group in comparison.groups]
    every = [*looks.values(), *_group_looks(comparison)]
    handles = [Line2D([], [], color=colour, marker=marker, linestyle="none") for colour, marker in every]
    return handles, [*labels, *groups]


def _offsets(count: int) -> Sequence[float]:
    """Where the entries of a row lie around its middle, which is 1 away from the next row's."""
    return [0.72 * ((index + 0.5) / count - 0.5) for index in range(count)]


def _success(axes: Axes, comparison: Comparison, names: Sequence[str]) -> None:
    looks = _looks(comparison)
    for run, offset in zip(comparison.runs, _offsets(len(comparison.runs)), strict=True):
        for y, name in enumerate(names):
            if name in run.success:
                rate = run.success[name]
                plots.interval(axes, y + offset, rate.success, rate.ci95, *looks[run.name])
    axes.set(xlim=(-2, 102), xlabel="success, %", title="Success, 95 % Wilson interval")
    _rows(axes, names)


def _differences(axes: Axes, comparison: Comparison, names: Sequence[str]) -> None:
    looks = _looks(comparison)
    for pair, offset in zip(comparison.pairs, _offsets(len(comparison.pairs)), strict=True):
        for y, name in enumerate(names):
            plots.forest(axes, y + offset, pair.difference.get(name), *looks[pair.run])
    axes.axvline(0, color=plots.QUIET, linewidth=1)
    axes.set(xlabel=f"minus {comparison.baseline}, points", title="Paired difference, 95 % interval")
    _rows(axes, names)


def _seed_means(axes: Axes, comparison: Comparison, names: Sequence[str]) -> None:
    looks, offsets = _group_looks(comparison), _offsets(len(comparison.groups))
    for group, look, offset in zip(comparison.groups, looks, offsets, strict=True):
        for y, name in enumerate(names):
            mean = group.interquartile_mean.get(name)
            if mean is not None:
                plots.interval(axes, y + offset, mean.mean, mean.ci95, *look)
    axes.set(xlim=(-2, 102), xlabel="success, %", title="Interquartile mean over seeds, 95 %")
    _rows(axes, names)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    plots.tidy(axes)
    for y, name in enumerate(names):
        if y and is_total(name):
            axes.axhline(y - 0.5, color=plots.GRID, linewidth=1)

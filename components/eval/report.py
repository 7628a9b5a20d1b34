"""The report: one HTML file that needs nothing else, and the same in Markdown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Literal

from matplotlib.figure import Figure

from components.eval import behaviour, behaviour_plots, plots
from components.eval.strips import Strip
from components.eval.videos import Video
from gripline import tables
from gripline.atomic import write_whole
from gripline.failures import MEANINGS
from gripline.summary import Difference, Rate, Summary
from gripline.types import EpisodeRecord

EMBEDDED_BYTES = 3_000_000
"""Of film strips and videos together: with what Base64 adds and the figures, the page stays below 5 MB."""


@dataclass(frozen=True)
class ReportData:
    """Everything that the report shows."""

    run_name: str
    summary: Summary
    success_means: str
    """When an episode is a success, in words (`EnvSpec.success_means`)."""
    decoding: Literal["greedy", "sampled"] = "greedy"
    sft_curve: plots.Curve = ()
    rl_curve: plots.Curve = ()
    sft_records: Sequence[EpisodeRecord] = ()
    rl_records: Sequence[EpisodeRecord] = ()
    """Of both evaluations: failures by type, conduct and steps to success are counted from them."""
    strips: Sequence[Strip] = ()
    videos: Sequence[Video] = ()
    """Those that do not fit into the page any more are named in it."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Further rows of "This run": versions, checkpoint hashes, …"""
    config: Mapping[str, object] = field(default_factory=dict)
    """The profile, shown folded."""


def write_report(data: ReportData, html_path: str | Path, markdown_path: str | Path) -> dict[str, Figure]:
    """Write both files, each whole or not at all; returns the figures, so that the tracker can log them too.

    Raises UserError when the disk does not take the files.
    """
    drawn = figures(data)
    write_whole(Path(html_path), render_html(data, drawn))
    write_whole(Path(markdown_path), tables.markdown(data.summary))
    return drawn


def figures(data: ReportData) -> dict[str, Figure]:
    """The report's figures by name, those for which there are data."""
    summary = data.summary
    found = {
        "success": plots.success_and_difference(summary),
        "slopes": plots.slopes(summary),
        "tasks": plots.heat_map(summary),
    }
    if behaviour.has_failure_types(data.sft_records, data.rl_records):
        found["failures"] = behaviour_plots.failures(data.sft_records, data.rl_records)
    measures = behaviour.conduct(data.sft_records, data.rl_records)
    if measures:
        found["conduct"] = behaviour_plots.conduct(measures)
    if summary.rl.ablations:
        found["ablations"] = plots.ablations(summary)
    if data.sft_curve or data.rl_curve:
        found["training"] = plots.training_curves(data.sft_curve, data.rl_curve)
    guard = behaviour_plots.guard(data.rl_curve)
    return found | ({} if guard is None else {"guard": guard})


def render_html(data: ReportData, drawn: Mapping[str, Figure]) -> str:
    """The page. Pictures and videos are embedded; nothing is loaded from anywhere."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("components.eval"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"percent": tables.percent, "points": tables.points, "in_words": tables.in_words}
    environment.globals |= {
        "rate_bar": _rate_bar,
        "mean": fmean,
        "number": behaviour.number,
        "signed": _signed,
        "MEANINGS": MEANINGS,
        "difference_bar": _difference_bar,
        "p_text": tables.p_text,
        "p_cell": tables.p_cell,
        "bootstrap_text": tables.bootstrap_text,
        "detectable_text": tables.detectable_text,
        "is_sure": tables.is_sure,
        "ALL_TASKS": tables.ALL_TASKS,
        "MDD_MEANS": tables.MDD_MEANS,
    }
    shown, left_out = _within_limit(data.videos, sum(len(strip.jpeg) for strip in data.strips))
    evaluations = (("SFT", data.sft_records), ("RL", data.rl_records))
    page: str = environment.get_template("report.html").render(
        data=data,
        summary=data.summary,
        tasks=list(data.summary.rl.per_task),
        rows=tables.rows(data.summary),
        figures={name: Markup(plots.inline_svg(figure)) for name, figure in drawn.items()},
        strips=[(strip, plots.data_uri(strip.jpeg, "image/jpeg")) for strip in data.strips],
        failed={name: behaviour.failures_by(records)[""] for name, records in evaluations if records},
        conduct=behaviour.conduct(data.sft_records, data.rl_records),
        videos=[(video, plots.data_uri(content, "image/gif")) for video, content in shown],
        left_out=[video.path.name for video in left_out],
        facts=_facts(data),
        config=json.dumps(data.config, indent=2, default=str, ensure_ascii=False),
        colours={"sft": plots.SFT_COLOUR, "rl": plots.RL_COLOUR},
    )
    return page


def _within_limit(videos: Sequence[Video], taken: int) -> tuple[list[tuple[Video, bytes]], list[Video]]:
    """The videos that fit into the page beside `taken` bytes, with their content, and those that do not."""
    shown, left_out = [], []
    for video in videos:
        content = video.path.read_bytes()
        if taken + len(content) <= EMBEDDED_BYTES:
            shown.append((video, content))
            taken += len(content)
        else:
            left_out.append(video)
    return shown, left_out


def _facts(data: ReportData) -> dict[str, str]:
    summary = data.summary
    seconds = summary.seconds
    facts = {
        "profile": f"{summary.profile}, seed {summary.seed}",
        "demonstrations": _duration(seconds.demos),
        "SFT": _duration(seconds.sft),
        "RL": _duration(seconds.rl),
        "both evaluations": _duration(seconds.eval),
        "these stages together": _duration(seconds.total),
        "control steps in RL": f"{summary.env_steps:,}",
        "MLflow run": summary.mlflow_run_id,
    }
    if summary.peak_memory_mb:
        facts["peak memory"] = f"{summary.peak_memory_mb:,.0f} MB"
    facts |= {f"{name} list": value[:16] for name, value in summary.split_hashes.items()}
    return facts | dict(data.facts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _signed(value: float) -> str:
    return ("+" if value > 0 else "−" if value < 0 else "±") + behaviour.number(abs(value))


def _rate_bar(rate: Rate) -> dict[str, float]:
    """Where the interval and the value lie on a track from 0 to 1, in per cent."""
    low, high = rate.ci95
    return {"left": 100 * low, "width": 100 * (high - low), "value": 100 * rate.success}


def _difference_bar(paired: Difference) -> dict[str, float]:
    """The same on a track from -1 to 1."""
    low, high = ((bound + 1) / 2 for bound in paired.ci95)
    return {"left": 100 * low, "width": 100 * (high - low), "value": 50 * (paired.difference + 1)}

"""The summary for people: one sentence, one table (terminal and Markdown), and the metric names of MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gripline.summary import SHARED_SCENE, Difference, Paired, PolicySummary, Rate, Summary

if TYPE_CHECKING:
    from rich.table import Table

ALL_TASKS = "all tasks"
MDD_MEANS = (
    "MDD: the smallest true difference, in points, that the exact McNemar test finds on n episodes with power 80 % at "
    "5 %, given how many changed"
)
SHARED_ROW = "shared-scene tasks"


@dataclass(frozen=True)
class Row:
    """One line of the table: a split, all tasks or one, both policies and what changed between them."""

    kind: str
    """'iid', 'ood' or 'ablation'."""
    split: str
    """'IID', an OOD axis or an ablation, in words."""
    task: str
    sft: Rate | None
    rl: Rate | None
    paired: Difference | None
    """None for ablations: there the question is how little is left, not which policy is better."""


def rows(summary: Summary) -> list[Row]:
    """IID, every OOD axis, every ablation; for each the row over all tasks first, then one per task."""
    return [*_iid_rows(summary), *_ood_rows(summary), *_ablation_rows(summary)]


def headline(summary: Summary) -> str:
    """The result in one sentence: both successes on IID, their paired difference, its interval and p."""
    paired = summary.paired.iid
    return (
        f"RL succeeds on {percent(summary.rl.iid.success)} of {paired.n} unseen initial states, SFT on "
        f"{percent(summary.sft.iid.success)}: {points(paired.difference)} points "
        f"(95 % CI {points(paired.ci95[0])} to {points(paired.ci95[1])}, exact McNemar p {p_text(paired.p)})"
    )


def render_table(summary: Summary, per_task: bool = True) -> Table:
    """The table for the terminal, 80 columns wide."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = Text(f"Success in % [95 % interval], profile {summary.profile}, seed {summary.seed}", "italic")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.caption, table.caption_justify = Text(MDD_MEANS, "dim italic"), "left"
    table.add_column("split and task", overflow="fold")
    for name in ("n", "SFT", "RL", "RL − SFT", "MDD", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows(summary):
        total = row.task == ALL_TASKS
        if total or per_task:
            name = row.split if total else f"  {row.task}"
            style = "bold" if total else "dim"
            changed = colour(row.paired) if total else style
            p = "" if row.paired is None else p_cell(row.paired)
            cells = [name, _n(row), rate_text(row.sft), rate_text(row.rl)]
            gain, detectable = Text(gain_text(row.paired), changed), Text(detectable_text(row.paired), style)
            table.add_row(*(Text(cell, style) for cell in cells), gain, detectable, Text(p, changed))
    return table


def markdown(summary: Summary) -> str:
    """Headline, table, decision, warnings, failures and speed: for MLflow's note and the pipeline's artifact."""
    lines = [
        f"**{headline(summary)}.**",
        "",
        "| split | task | n | SFT | RL | RL − SFT | bootstrap | MDD | p |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows(summary):
        cells = [f"**{row.split}**" if row.task == ALL_TASKS else "", row.task, _n(row)]
        cells += [rate_text(row.sft), rate_text(row.rl), gain_text(row.paired), bootstrap_text(row.paired)]
        cells += [detectable_text(row.paired), "" if row.paired is None else p_cell(row.paired)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Success in per cent. Brackets: 95 % intervals (Wilson; score interval for paired differences, and beside it "
        f"the bootstrap's, stratified by task). {MDD_MEANS}. p: exact McNemar, Holm-corrected over the OOD axes.",
        "",
    ]
    lines.append("**Promoted.**" if summary.promoted else "**Not promoted.**")
    lines += [f"* {reason}" for reason in summary.reasons]
    lines += [f"* **Warning:** {warning}" for warning in summary.warnings]
    lines += ["", *(f"{line}  " for line in further_lines(summary))]
    return "\n".join(lines) + "\n"


def further_lines(summary: Summary) -> list[str]:
    """How the failures went, and how fast it all was, where that is known."""
    evaluations = {"SFT": summary.sft, "RL": summary.rl}
    failed = [f"{name} {failures_text(policy.failures)}" for name, policy in evaluations.items() if policy.failures]
    speeds = [f"{summary.episodes_per_s[key]:.2g} ({key.upper()})" for key in summary.episodes_per_s]
    lines = [f"Failures on IID and OOD: {'; '.join(failed)}"] if failed else []
    lines += [f"Evaluations: {' and '.join(speeds)} episodes a second"] if speeds else []
    if summary.seconds.rl:
        lines.append(f"RL: {summary.env_steps / summary.seconds.rl:,.0f} control steps a second, learning included")
    return lines


def named_rates(policy: PolicySummary) -> dict[str, Rate]:
    """Every rate under the name that it has everywhere: `iid`, `ood/AXIS`, `ablation/NAME`, `task/TASK` (IID), and
    `task/TASK/ood/AXIS`."""
    named: dict[str, Rate] = {"iid": policy.iid}
    named |= {f"ood/{axis}": rate for axis, rate in policy.ood.items()}
    named |= {f"ablation/{name}": rate for name, rate in policy.ablations.items()}
    named |= {f"task/{task}": rates.iid for task, rates in policy.per_task.items() if rates.iid is not None}
    for task, rates in policy.per_task.items():
        named |= {f"task/{task}/ood/{axis}": rate for axis, rate in rates.ood.items()}
    return named


def named_differences(paired: Paired) -> dict[str, Difference]:
    """Every paired difference, named as in `named_rates`."""
    named = {"iid": paired.iid} | {f"ood/{axis}": difference for axis, difference in paired.ood.items()}
    named |= {f"task/{task}": each.iid for task, each in paired.per_task.items() if each.iid is not None}
    for task, each in paired.per_task.items():
        named |= {f"task/{task}/ood/{axis}": difference for axis, difference in each.ood.items()}
    return named


def policy_metrics(policy: PolicySummary) -> dict[str, float]:
    """Metrics of one evaluation, such as `eval/iid/success` and `eval/ood/camera/ci_low`."""
    metrics: dict[str, float] = {}
    for name, rate in named_rates(policy).items():
        bounds = {"success": rate.success, "ci_low": rate.ci95[0], "ci_high": rate.ci95[1]}
        metrics |= {f"eval/{name}/{field}": round(value, 4) for field, value in bounds.items()}
        metrics |= {f"eval/{name}/errors": rate.errors} if rate.errors else {}
    for task, rates in policy.per_task.items():
        metrics |= {
            f"eval/task/{task}/ablation/{name}/success": round(rate.success, 4)
            for name, rate in rates.ablations.items()
        }
    return metrics | {f"eval/iid/{name}": value for name, value in _how_it_went(policy).items()}


def _how_it_went(policy: PolicySummary) -> dict[str, float]:
    """On IID: `failure/<type>`, the share of episodes that ended so, and `conduct/<name>`, means."""
    shares = {f"failure/{name}": round(count / policy.iid.n, 4) for name, count in policy.iid_failures.items()}
    return shares | {f"conduct/{name}": float(f"{value:.4g}") for name, value in policy.conduct.items()}


def final_metrics(summary: Summary) -> dict[str, float]:
    """The numbers by which whole runs are compared, for the parent run: `gain/…`, `eval/…` of the RL policy under the
    names that an evaluation's own run has, and `sft/…` of the policy before.

    MLflow's compare page sorts them by name and shows the first few, so ablations, failures and conduct are not under
    `eval/` here but under `rl/` and `sft/`; its plots begin with the first one of this dictionary, and its charts are
    grouped by what stands before the last slash. Intervals of single tasks and of ablations are left to the
    evaluations' runs.
    """
    iid = summary.paired.iid
    gain = {"difference": iid.difference, "ci_low": iid.ci95[0], "ci_high": iid.ci95[1]}
    metrics = {f"gain/iid/{field}": round(value, 4) for field, value in gain.items()}
    metrics["gain/iid/p"] = float(f"{iid.p:.3g}")
    metrics |= {f"gain/ood/{axis}/difference": round(each.difference, 4) for axis, each in summary.paired.ood.items()}
    metrics |= {name: value for name, value in policy_metrics(summary.rl).items() if _compares_runs(name)}
    for name, policy in (("rl", summary.rl), ("sft", summary.sft)):
        kinds = ("ablation/",) if name == "rl" else ("ablation/", "iid", "ood/")
        shown = {kind: rate for kind, rate in named_rates(policy).items() if kind.startswith(kinds)}
        metrics |= {f"{name}/{kind}/success": round(rate.success, 4) for kind, rate in shown.items()}
        metrics |= {f"{name}/iid/{kind}": value for kind, value in _how_it_went(policy).items()}
    metrics["run/promoted"] = float(summary.promoted)
    metrics |= {f"run/seconds_{name}": round(value, 1) for name, value in dict(summary.seconds).items()}
    return metrics | {"run/env_steps": float(summary.env_steps), "run/peak_memory_mb": round(summary.peak_memory_mb, 1)}


def _compares_runs(name: str) -> bool:
    """Whether a metric of an evaluation is also one of the pipeline's run."""
    if name.startswith("eval/task/"):
        return name.endswith("/success") and not {"ood", "ablation"} & set(name.split("/"))
    return name.startswith(("eval/iid/", "eval/ood/")) and not name.startswith(
        ("eval/iid/failure/", "eval/iid/conduct/")
    )


def percent(rate: float) -> str:
    """0.95 as '95.0 %'."""
    return f"{100 * rate:.1f} %"


def points(difference: float) -> str:
    """0.375 as '+37.5', -0.1 as '−10.0' (percentage points)."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def p_text(p: float) -> str:
    """'= 0.031', '< 0.0001'."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"


def p_corrected(paired: Difference) -> float:
    """The p-value to go by: corrected where several axes were looked at."""
    return paired.p if paired.p_holm is None else paired.p_holm


def is_sure(paired: Difference) -> bool:
    """Whether the difference is significant at 5 %."""
    return p_corrected(paired) < 0.05


def rate_text(rate: Rate | None) -> str:
    """'95 [90, 98]': per cent, with the interval."""
    return "–" if rate is None else f"{100 * rate.success:.0f} [{100 * rate.ci95[0]:.0f}, {100 * rate.ci95[1]:.0f}]"


def gain_text(paired: Difference | None) -> str:
    """'+38 [+28, +46]': percentage points, with the interval."""
    if paired is None:
        return ""
    low, high = paired.ci95
    return f"{100 * paired.difference:+.0f} [{100 * low:+.0f}, {100 * high:+.0f}]".replace("-", "−")


def bootstrap_text(paired: Difference | None) -> str:
    """'[+28, +46]': percentage points."""
    if paired is None or paired.ci95_bootstrap is None:
        return ""
    low, high = paired.ci95_bootstrap
    return f"[{100 * low:+.0f}, {100 * high:+.0f}]".replace("-", "−")


def detectable_text(paired: Difference | None) -> str:
    """'14', '1.5' (percentage points); '–' where no difference would be found."""
    if paired is None:
        return ""
    if paired.detectable is None:
        return "–"
    return f"{100 * paired.detectable:.{0 if paired.detectable >= 0.0995 else 1}f}"


def p_cell(paired: Difference) -> str:
    """'0.031', '<1e-4': short, for a table."""
    return p_text(p_corrected(paired)).removeprefix("= ").replace("< 0.0001", "<1e-4")


def in_words(name: str) -> str:
    """'swapped_instruction' as 'swapped instruction'."""
    return name.removesuffix(SHARED_SCENE).replace("_", " ")


def _iid_rows(summary: Summary) -> Iterator[Row]:
    yield Row("iid", "IID", ALL_TASKS, summary.sft.iid, summary.rl.iid, summary.paired.iid)
    for task, rates in summary.rl.per_task.items():
        pairs = summary.paired.per_task.get(task)
        yield Row("iid", "IID", task, summary.sft.per_task[task].iid, rates.iid, pairs.iid if pairs else None)


def _ood_rows(summary: Summary) -> Iterator[Row]:
    for axis in summary.rl.ood:
        paired = summary.paired.ood.get(axis)
        yield Row("ood", in_words(axis), ALL_TASKS, summary.sft.ood.get(axis), summary.rl.ood[axis], paired)
        for task, rates in summary.rl.per_task.items():
            if axis in rates.ood:
                pairs = summary.paired.per_task.get(task)
                sft = summary.sft.per_task[task].ood.get(axis)
                yield Row("ood", in_words(axis), task, sft, rates.ood[axis], pairs.ood.get(axis) if pairs else None)


def _ablation_rows(summary: Summary) -> Iterator[Row]:
    for name, rate in summary.rl.ablations.items():
        if name.endswith(SHARED_SCENE):
            continue
        yield Row("ablation", in_words(name), ALL_TASKS, summary.sft.ablations.get(name), rate, None)
        shared = name + SHARED_SCENE
        if shared in summary.rl.ablations:
            sft = summary.sft.ablations.get(shared)
            yield Row("ablation", in_words(name), SHARED_ROW, sft, summary.rl.ablations[shared], None)
        for task, rates in summary.rl.per_task.items():
            if name in rates.ablations:
                sft = summary.sft.per_task[task].ablations.get(name)
                yield Row("ablation", in_words(name), task, sft, rates.ablations[name], None)


def failures_text(failures: dict[str, int]) -> str:
    """'41 (never approached 30, dropped 11)': the commonest first."""
    by_count = sorted(failures.items(), key=lambda item: -item[1])
    return f"{sum(failures.values())} ({', '.join(f'{in_words(name)} {count}' for name, count in by_count)})"


def _n(row: Row) -> str:
    return str(row.rl.n) if row.rl is not None else ""


def colour(paired: Difference | None) -> str:
    """How the terminal shows a difference: green or red where it is significant at 5 %."""
    if paired is None or not is_sure(paired):
        return "bold"
    return "bold green" if paired.difference > 0 else "bold red"

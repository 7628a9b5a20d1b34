"""Several runs beside each other: success of each, paired differences from a baseline, means over training seeds.

Only counting happens here; `gripline.evaluated_runs` reads folders and MLflow, `components.eval.comparison_report`
draws. Rates and differences have the names of `gripline.tables.named_rates`: `iid`, `ood/AXIS`, `task/TASK`, ….
Shapes: R training seeds, T tasks.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from gripline.errors import UserError
from gripline.statistics import holm, interquartile_interval, interquartile_mean
from gripline.summary import SHARED_SCENE, Difference, Rate, compare_common, summarise_policy
from gripline.tables import in_words, named_differences, named_rates
from gripline.types import EpisodeRecord

Policy = Literal["sft", "rl"]


@dataclass(frozen=True)
class Evaluation:
    """What is known of one policy of one run."""

    name: str
    policy: Policy
    records: Sequence[EpisodeRecord] = ()
    """Empty: only `metrics` are known."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """As logged, such as `eval/iid/success`; used where there are no records."""
    profile: str = ""
    seed: int | None = None
    settings: str = ""
    """Equal for two runs that were trained and tested alike but for their seed."""
    mlflow_run_id: str = ""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Success(_Part):
    """One rate. What only metrics tell has no n, and may have no interval."""

    success: float
    ci95: tuple[float, float] | None
    n: int | None


class ComparedRun(_Part):
    """One policy of one run."""

    name: str
    policy: Policy
    profile: str
    seed: int | None
    mlflow_run_id: str
    success: dict[str, Success]
    failures: dict[str, int] = {}
    """Failed IID and OOD episodes by type; empty where only metrics are known, or episodes have no types."""
    conduct: dict[str, float] = {}
    """Means over IID episodes."""


class Pairing(_Part):
    """One run minus the baseline, on the episodes that both have."""

    run: str
    common: int
    """Episodes that both lists hold, ablations included."""
    difference: dict[str, Difference]
    """`p_holm`: over the OOD axes of all runs; of several runs' IID differences, over the runs."""


class SeedMean(_Part):
    """Interquartile mean over training seeds and tasks."""

    mean: float
    ci95: tuple[float, float]
    """Stratified bootstrap over the seeds, always with the same seed of its own."""
    num_tasks: int


class SeedGroup(_Part):
    """Runs that differ in nothing but their training seed."""

    name: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    interquartile_mean: dict[str, SeedMean]
    """`iid` and `ood/AXIS`."""


class Comparison(_Part):
    """All of it: what `gripline compare --json` writes."""

    baseline: str | None
    """Null when it could not be read."""
    runs: tuple[ComparedRun, ...]
    pairs: tuple[Pairing, ...]
    groups: tuple[SeedGroup, ...]
    notes: tuple[str, ...]
    """What was not paired and need not be."""
    problems: tuple[str, ...]
    """What should have been there and is not, one line each."""


def compare_runs(baseline: Evaluation | None, others: Sequence[Evaluation], problems: Iterable[str] = ()) -> Comparison:
    """Compare every run with the baseline where their episodes coincide. What cannot be compared becomes a problem.

    baseline: None when it could not be read; the others are then shown unpaired. problems: those met while reading.
    """
    found: list[tuple[Evaluation, ComparedRun]] = []
    said = list(problems)
    names = _distinct_names([evaluation for evaluation in (baseline, *others) if evaluation is not None])
    for evaluation in (baseline, *others):
        if evaluation is not None:
            name = names.pop(0)
            try:
                found.append((evaluation, _compared_run(evaluation, name)))
            except UserError as error:
                said.append(f"{name}: {error.line}")
    pairs, notes = [], []
    has_baseline = bool(found) and found[0][0] is baseline
    for evaluation, run in found[1:] if has_baseline else []:
        assert baseline is not None
        try:
            pairs.append(_pairing(baseline, evaluation, run.name))
        except UserError as error:
            said.append(f"{run.name}: {error.line}")
            continue
        notes += _pairing_notes(baseline, evaluation, pairs[-1], found[0][1].name)
    return Comparison(
        baseline=found[0][1].name if has_baseline else None,
        runs=tuple(run for _, run in found),
        pairs=tuple(_corrected(pairs)),
        groups=tuple(_seed_groups(found)),
        notes=tuple(notes),
        problems=tuple(said),
    )


def row_names(comparison: Comparison) -> list[str]:
    """What a table shows, in its order: IID, each task, each OOD axis, each ablation. Tasks on an axis are left out."""
    names = dict.fromkeys(name for run in comparison.runs for name in run.success)
    kinds = ("iid", "task/", "ood/", "ablation/")
    return [name for kind in kinds for name in names if name.startswith(kind) and name.count("/") < 2]


def row_label(name: str) -> str:
    """'ablation/no_image' as 'no image'."""
    kind, _, rest = name.partition("/")
    if kind == "iid":
        return "IID"
    shared = ", shared scene" if rest.endswith(SHARED_SCENE) else ""
    return rest if kind == "task" else in_words(rest) + shared


def success_text(rate: Success) -> str:
    """'95 [90, 98]': per cent, with the interval where it is known."""
    interval = "" if rate.ci95 is None else f" [{100 * rate.ci95[0]:.0f}, {100 * rate.ci95[1]:.0f}]"
    return f"{100 * rate.success:.0f}{interval}"


def is_total(name: str) -> bool:
    """Whether the row is over all tasks."""
    return not name.startswith("task/")


def _distinct_names(evaluations: Sequence[Evaluation]) -> list[str]:
    names: list[str] = []
    for evaluation in evaluations:
        name = f"{evaluation.name} SFT" if evaluation.policy == "sft" else evaluation.name
        number = sum(taken == name or taken.startswith(f"{name} #") for taken in names)
        names.append(f"{name} #{number + 1}" if number else name)
    return names


def _compared_run(evaluation: Evaluation, name: str) -> ComparedRun:
    success = _from_metrics(evaluation.metrics)
    failures, conduct = {}, {}
    if evaluation.records:
        policy = summarise_policy(evaluation.records)
        success = {key: _success(rate) for key, rate in named_rates(policy).items()}
        failures, conduct = policy.failures, policy.conduct
    if not success:
        raise UserError("", "", "has neither episodes nor metrics such as eval/iid/success", "name an evaluated run")
    return ComparedRun(
        name=name,
        policy=evaluation.policy,
        profile=evaluation.profile,
        seed=evaluation.seed,
        mlflow_run_id=evaluation.mlflow_run_id,
        success=success,
        failures=failures,
        conduct=conduct,
    )


def _success(rate: Rate) -> Success:
    return Success(success=rate.success, ci95=rate.ci95, n=rate.n)


def _from_metrics(metrics: Mapping[str, float]) -> dict[str, Success]:
    found = {}
    for metric, value in metrics.items():
        match = re.fullmatch(r"eval/(.+)/success", metric)
        if match:
            low, high = (f"eval/{match[1]}/{bound}" for bound in ("ci_low", "ci_high"))
            interval = (metrics[low], metrics[high]) if low in metrics and high in metrics else None
            found[match[1]] = Success(success=value, ci95=interval, n=None)
    return found


def _pairing(baseline: Evaluation, candidate: Evaluation, name: str) -> Pairing:
    """Raises UserError when both have episodes, and none in common."""
    keys = {record.spec.key for record in baseline.records}
    common = sum(record.spec.key in keys for record in candidate.records)
    if not baseline.records or not candidate.records:
        return Pairing(run=name, common=0, difference={})
    if not common:
        problem = "has no episode in common with the baseline, so it is not paired"
        raise UserError("", "", problem, "evaluate both on the same split lists")
    paired = compare_common(baseline.records, candidate.records)
    return Pairing(run=name, common=common, difference=named_differences(paired))


def _pairing_notes(baseline: Evaluation, candidate: Evaluation, pairing: Pairing, baseline_name: str) -> list[str]:
    for evaluation, name in ((baseline, baseline_name), (candidate, pairing.run)):
        if not evaluation.records:
            return [f"{name} has metrics but no episodes: {pairing.run} is not paired with {baseline_name}"]
    longest = max(len(baseline.records), len(candidate.records))
    shared = f"{pairing.run} and {baseline_name} share {pairing.common} of {longest} episodes: only these are paired"
    return [shared] if pairing.common < longest else []


def _corrected(pairs: Sequence[Pairing]) -> list[Pairing]:
    """Holm over all OOD axes of all runs; over the runs' IID differences, where there are several."""
    differences = {pair.run: dict(pair.difference) for pair in pairs}
    for family in ("iid", "ood") if len(pairs) > 1 else ("ood",):
        members = [(own, name) for own in differences.values() for name in own if name.partition("/")[0] == family]
        for (own, name), p_holm in zip(members, holm([own[name].p for own, name in members]), strict=True):
            own[name] = own[name].model_copy(update={"p_holm": p_holm})
    return [pair.model_copy(update={"difference": differences[pair.run]}) for pair in pairs]


def _seed_groups(found: Iterable[tuple[Evaluation, ComparedRun]]) -> list[SeedGroup]:
    members: dict[tuple[str, str, Policy], dict[int, ComparedRun]] = {}
    for evaluation, run in found:
        if run.profile and run.seed is not None:
            members.setdefault((run.profile, evaluation.settings, run.policy), {}).setdefault(run.seed, run)
    several = {key: runs for key, runs in members.items() if len(runs) > 1}
    groups: list[SeedGroup] = []
    for (profile, _, policy), runs in several.items():
        same = [key for key in several if (key[0], key[2]) == (profile, policy)]
        number = "" if len(same) == 1 else f" #{1 + sum(group.name.startswith(profile) for group in groups)}"
        groups.append(
            SeedGroup(
                name=profile + (" SFT" if policy == "sft" else "") + number,
                runs=tuple(run.name for run in runs.values()),
                seeds=tuple(runs),
                interquartile_mean=_seed_means(list(runs.values())),
            )
        )
    return groups


def _seed_means(runs: Sequence[ComparedRun]) -> dict[str, SeedMean]:
    """Over the tasks that every run has, for IID and each axis."""
    means = {}
    for name in runs[0].success:
        if name == "iid" or name.startswith("ood/"):
            scores_RT = np.array([list(scores.values()) for scores in _task_scores(runs, name)])
            if scores_RT.shape[1]:
                means[name] = SeedMean(
                    mean=interquartile_mean(scores_RT),
                    ci95=interquartile_interval(scores_RT),
                    num_tasks=scores_RT.shape[1],
                )
    return means


def _task_scores(runs: Sequence[ComparedRun], name: str) -> list[dict[str, float]]:
    """For each run: success per task, of those tasks that every run has."""
    suffix = "" if name == "iid" else f"/{name}"
    pattern = re.compile(rf"task/[^/]+{re.escape(suffix)}")
    common = [key for key in runs[0].success if pattern.fullmatch(key) and all(key in run.success for run in runs)]
    return [{key: run.success[key].success for key in common} for run in runs]

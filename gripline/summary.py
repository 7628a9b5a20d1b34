"""`summary.json`: what a run found, in a form that other programs may rely on, and the decisions drawn from it.

The episodes of both policies are counted per task and split, compared pairwise, and looked at without image and
instruction. Only counting happens here; the statistics are in `gripline.statistics`, tables in `gripline.tables`.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from gripline.atomic import write_whole
from gripline.clusters import design_effect
from gripline.config import PromoteConfig
from gripline.errors import UserError
from gripline.failures import count_failures, mean_conduct
from gripline.promotion import promotion_decision
from gripline.statistics import holm, paired_comparison, wilson_interval
from gripline.types import EpisodeRecord

_Item = TypeVar("_Item")
SHARED_SCENE = "_shared_scene"
"""Suffix of the ablations over those tasks only that share a scene, where nothing but the text tells what to do."""


class _Part(BaseModel):
    """A part of summary.json: unknown and missing keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Rate(_Part):
    """Success over episodes. Example: `{"success": 0.95, "n": 120, "ci95": [0.895, 0.977], "errors": 0}`."""

    success: float
    n: int
    """Episodes that count; those of `errors` do not."""
    ci95: tuple[float, float]
    """Wilson interval."""
    errors: int = 0
    """Episodes lost to the simulator: neither success nor failure of the policy."""


class Ablation(Rate):
    """Success with one input taken away or swapped."""

    intact: float
    """Success on the same initial states with every input in place."""


class TaskRates(_Part):
    """One task. `iid` is null for a task that only an OOD axis has."""

    iid: Rate | None
    ood: dict[str, Rate]
    ablations: dict[str, Ablation]


class PolicySummary(_Part):
    """One policy over all tasks, and per task."""

    iid: Rate
    ood: dict[str, Rate]
    per_task: dict[str, TaskRates]
    ablations: dict[str, Ablation]
    failures: dict[str, int] = {}
    """Failed IID and OOD episodes by type (`gripline.failures.FAILURES`); empty in files of before they were typed."""
    iid_failures: dict[str, int] = {}
    """The same of IID episodes alone."""
    conduct: dict[str, float] = {}
    """Means over IID episodes: the fields of `Conduct` that were measured, and `steps_to_success`."""


class Difference(_Part):
    """RL minus SFT (or a candidate minus its baseline) on the same episodes."""

    difference: float
    ci95: tuple[float, float]
    """Score interval (Tango): the one to go by."""
    ci95_bootstrap: tuple[float, float] | None = None
    """Percentile bootstrap, stratified by task, always with the same seed. Null in files of before there was one."""
    p: float
    """Exact McNemar, two-sided."""
    p_holm: float | None = None
    """OOD axes only: p corrected for looking at all of them."""
    n: int
    gained: int
    lost: int
    detectable: float | None = None
    """The smallest true difference that this test finds on n episodes with power 0.8 at 5 %, given how many changed
    here. Null where there is none, and in files of before it was computed."""


class TaskDifferences(_Part):
    """One task; what has no pairs is left out."""

    iid: Difference | None
    ood: dict[str, Difference]


class Paired(_Part):
    """The comparison of both policies over all tasks, and per task."""

    iid: Difference
    ood: dict[str, Difference]
    per_task: dict[str, TaskDifferences]
    ood_all: Difference | None = None
    """All OOD episodes together. Null where there are none, and in files of before."""


class Seconds(_Part):
    """Wall-clock seconds; `eval` is both evaluations, `total` the whole run."""

    demos: float
    sft: float
    rl: float
    eval: float
    total: float


class RunFacts(_Part):
    """What the stages measured and the summary passes on."""

    profile: str
    seed: int
    seconds: Seconds
    peak_memory_mb: float
    """Largest proportional set size, summed over all processes of the run."""
    env_steps: int
    """Control steps that RL trained on or discarded; evaluation not included."""
    mlflow_run_id: str
    split_hashes: dict[str, str]
    episodes_per_s: dict[str, float] = {}
    """Of the evaluations `sft` and `rl`, with all workers. Empty in files of before it was measured."""


class Summary(RunFacts):
    """The whole file."""

    sft: PolicySummary
    rl: PolicySummary
    paired: Paired
    promoted: bool
    reasons: tuple[str, ...]
    """Why it was or was not promoted, one sentence per rule."""
    warnings: tuple[str, ...]
    """One sentence per input that a policy seems not to use, and on episodes lost to the simulator."""


def summarise(
    sft_records: Sequence[EpisodeRecord],
    rl_records: Sequence[EpisodeRecord],
    *,
    facts: RunFacts,
    promote: PromoteConfig,
    indifference_threshold: float,
    shared_scene_tasks: Iterable[str] = (),
) -> Summary:
    """Count, compare and decide. Raises UserError when the lists do not match or no IID episode finished.

    shared_scene_tasks: the tasks of which another one of the run has the same scene (see `SHARED_SCENE`).
    """
    shared = frozenset(shared_scene_tasks)
    sft, rl = summarise_policy(sft_records, shared), summarise_policy(rl_records, shared)
    paired = compare(sft_records, rl_records)
    indifferent = {
        name: indifference_warnings(policy, indifference_threshold, shared)
        for name, policy in (("SFT", sft), ("RL", rl))
    }
    decision = promotion_decision(
        sft,
        rl,
        paired,
        promote,
        lost=_lost_shares(sft_records, rl_records),
        indifferent=indifferent["RL"],
        indifference_threshold=indifference_threshold,
    )
    warnings = [
        f"{name} policy: {text}"
        for name, records in (("SFT", sft_records), ("RL", rl_records))
        for text in [*indifferent[name], *_error_warnings(records)]
    ]
    return Summary(**dict(facts), sft=sft, rl=rl, paired=paired, warnings=tuple(warnings), **decision._asdict())


def summarise_policy(records: Sequence[EpisodeRecord], shared_scene_tasks: Iterable[str] = ()) -> PolicySummary:
    """Success rates of one policy. Raises UserError when no IID episode finished."""
    shared = frozenset(shared_scene_tasks)
    iid = _rate(_iid(records))
    if iid is None:
        next_step = "run the evaluation again; the results file names each error"
        raise UserError("evaluation", "iid", "no IID episode finished in the simulator", next_step)
    ablations = _ablations(records)
    in_shared_scene = [record for record in records if record.spec.task in shared]
    ablations |= {
        name + SHARED_SCENE: rate for name, rate in _ablations(in_shared_scene).items() if "instruction" in name
    }
    by_task = _grouped(records, lambda record: record.spec.task)
    return PolicySummary(
        iid=iid,
        ood=_ood_rates(records),
        per_task={task: _task_rates(own) for task, own in by_task.items()},
        ablations=ablations,
        failures=count_failures([record for record in records if _is_iid(record) or record.spec.split == "ood"]),
        iid_failures=count_failures(_iid(records)),
        conduct=mean_conduct([record for record in _iid(records) if not record.error]),
    )


def compare(sft_records: Sequence[EpisodeRecord], rl_records: Sequence[EpisodeRecord]) -> Paired:
    """RL minus SFT on the episodes that both finished. Raises UserError when the lists hold different episodes."""
    keys, after = [record.spec.key for record in sft_records], {record.spec.key: record for record in rl_records}
    if set(keys) != after.keys():
        next_step = "evaluate both policies on the same split lists"
        raise UserError("evaluation", "episodes", "SFT and RL were not evaluated on the same episodes", next_step)
    return _compare([(record, after[key]) for record, key in zip(sft_records, keys, strict=True)])


def compare_common(baseline: Sequence[EpisodeRecord], candidate: Sequence[EpisodeRecord]) -> Paired:
    """Candidate minus baseline on the episodes that both lists hold and both policies finished.

    Raises UserError when there is no IID episode among them.
    """
    after = {record.spec.key: record for record in candidate}
    return _compare([(record, after[key]) for record in baseline if (key := record.spec.key) in after])


def _compare(pairs: Sequence["_Pair"]) -> Paired:
    pairs = [(before, other) for before, other in pairs if not before.error and not other.error]
    iid = _difference([pair for pair in pairs if _is_iid(pair[0])])
    if iid is None:
        raise UserError("evaluation", "iid", "no IID episode finished with both policies", "run the evaluations again")
    by_task = _grouped(pairs, lambda pair: pair[0].spec.task)
    per_task = {
        task: TaskDifferences(iid=_difference([pair for pair in own if _is_iid(pair[0])]), ood=_ood_differences(own))
        for task, own in by_task.items()
    }
    ood_all = _difference([pair for pair in pairs if pair[0].spec.split == "ood"])
    return Paired(iid=iid, ood=_ood_differences(pairs), per_task=per_task, ood_all=ood_all)


def indifference_warnings(policy: PolicySummary, threshold: float, shared_scene_tasks: Iterable[str] = ()) -> list[str]:
    """One sentence per input without which more than `threshold` of the intact success is left: over all tasks, else
    per task, where the lower end of the 95 % interval must be above it.

    The text is judged by another task's instruction on the tasks that share a scene, where there are such: elsewhere
    the picture alone may tell what to do, and doing the right thing against the instruction proves little.
    """
    swapped, shared = "swapped_instruction", frozenset(shared_scene_tasks)
    text = swapped + SHARED_SCENE if swapped + SHARED_SCENE in policy.ablations else swapped
    inputs = (
        ("no_image", "no_image", "with a black image: it hardly uses the camera", frozenset(policy.per_task)),
        (text, swapped, "with another task's instruction: it hardly reads", shared),
    )
    warnings = []
    for name, of_task, meaning, tasks in inputs:
        rate = policy.ablations.get(name)
        if rate is not None and rate.success > threshold * rate.intact > 0:
            warnings.append(f"keeps {_left(rate)} {meaning}")
            continue
        for task, rates in policy.per_task.items():
            found = rates.ablations.get(of_task) if task in tasks else None
            if found is not None and found.ci95[0] > threshold * found.intact > 0:
                warnings.append(f"keeps {_left(found)} in {task} {meaning}")
    return warnings


def _left(rate: Ablation) -> str:
    return f"{rate.success / rate.intact:.0%} of its success ({rate.success:.2f} of {rate.intact:.2f})"


def write_summary(path: str | Path, summary: Summary) -> None:
    """Write summary.json, whole or not at all."""
    write_whole(Path(path), summary.model_dump_json(indent=1) + "\n")


def read_summary(path: str | Path) -> Summary:
    """Read and check. Raises UserError when the file is missing or does not follow the schema."""
    try:
        return Summary.model_validate_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(str(path), "", f"cannot be read: {error.strerror}", "give a finished run directory") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(str(path), field, first["msg"], "was it written by another version of gripline?") from error


_Pair = tuple[EpisodeRecord, EpisodeRecord]


def _is_iid(record: EpisodeRecord) -> bool:
    return record.spec.split == "iid" and record.spec.axis == "iid"


def _iid(records: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
    return [record for record in records if _is_iid(record)]


def _by_axis(records: Iterable[EpisodeRecord]) -> dict[str, list[EpisodeRecord]]:
    return _grouped(records, lambda record: record.spec.axis)


def _grouped(items: Iterable[_Item], name: Callable[[_Item], str]) -> dict[str, list[_Item]]:
    """By name, in the order in which names first occur."""
    groups: dict[str, list[_Item]] = {}
    for item in items:
        groups.setdefault(name(item), []).append(item)
    return groups


def _rate(records: Sequence[EpisodeRecord]) -> Rate | None:
    """None when no episode finished: nothing is known, and a zero would say otherwise."""
    finished = [record for record in records if not record.error]
    if not finished:
        return None
    successes, n = sum(record.success for record in finished), len(finished)
    errors = len(records) - n
    effect = design_effect([record.success for record in finished], _init_states(finished))
    return Rate(success=successes / n, n=n, ci95=wilson_interval(successes / effect, n / effect), errors=errors)


def _init_states(records: Iterable[EpisodeRecord]) -> list[tuple[str, str, int, str]]:
    """Episodes of one are not independent."""
    return [record.spec.init_state_key for record in records]


def _error_warnings(records: Sequence[EpisodeRecord]) -> list[str]:
    lost = _by_axis(record for record in records if record.error)
    axes = ", ".join(f"{axis} {len(own)}" for axis, own in lost.items())
    return [f"lost episodes to simulator errors, not counted as failures: {axes}"] if lost else []


def _lost_shares(sft: Sequence[EpisodeRecord], rl: Sequence[EpisodeRecord]) -> dict[str, float]:
    """Of 'IID' and each 'OOD <axis>', the share of episodes that the simulator did not finish with both policies."""
    broken = {record.spec.key for record in (*sft, *rl) if record.error}
    axes = {"IID": _iid(sft)} | {
        f"OOD {axis}": own for axis, own in _by_axis(record for record in sft if record.spec.split == "ood").items()
    }
    if not broken:
        return dict.fromkeys(axes, 0.0)
    return {name: sum(record.spec.key in broken for record in own) / len(own) for name, own in axes.items()}


def _ood_rates(records: Sequence[EpisodeRecord]) -> dict[str, Rate]:
    axes = _by_axis(record for record in records if record.spec.split == "ood")
    return {axis: rate for axis, own in axes.items() if (rate := _rate(own)) is not None}


def _ablations(records: Sequence[EpisodeRecord]) -> dict[str, Ablation]:
    """Ablations are IID episodes under another axis, each compared with the intact runs of its initial states."""
    intact = {(record.spec.init_state_key, record.spec.member): record for record in _iid(records)}
    axes = _by_axis(record for record in records if record.spec.split == "iid" and not _is_iid(record))
    ablations = {}
    for name, own in axes.items():
        rate = _rate(own)
        reference = _rate(
            [intact[key] for record in own if (key := (record.spec.init_state_key, record.spec.member)) in intact]
        )
        if rate is not None and reference is not None:
            ablations[name] = Ablation(**dict(rate), intact=reference.success)
    return ablations


def _task_rates(records: Sequence[EpisodeRecord]) -> TaskRates:
    return TaskRates(iid=_rate(_iid(records)), ood=_ood_rates(records), ablations=_ablations(records))


def _difference(pairs: Sequence[_Pair]) -> Difference | None:
    if not pairs:
        return None
    result = paired_comparison(
        [before.success for before, _ in pairs],
        [after.success for _, after in pairs],
        strata=[before.spec.task for before, _ in pairs],
        clusters=_init_states(before for before, _ in pairs),
    )
    return Difference(
        difference=result.difference,
        ci95=(result.ci_low, result.ci_high),
        ci95_bootstrap=(result.bootstrap_low, result.bootstrap_high),
        p=result.p_value,
        n=result.n,
        gained=result.gained,
        lost=result.lost,
        detectable=result.detectable,
    )


def _ood_differences(pairs: Sequence[_Pair]) -> dict[str, Difference]:
    axes = _grouped((pair for pair in pairs if pair[0].spec.split == "ood"), lambda pair: pair[0].spec.axis)
    found = {axis: difference for axis, own in axes.items() if (difference := _difference(own)) is not None}
    corrected = holm([difference.p for difference in found.values()])
    return {
        axis: difference.model_copy(update={"p_holm": p_holm})
        for (axis, difference), p_holm in zip(found.items(), corrected, strict=True)
    }

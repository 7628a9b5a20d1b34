"""How episodes went beyond their success: failures by type, and how safely, smoothly and quickly the robot moved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from gripline.failures import MORE_IS_BETTER, STEPS_TO_SUCCESS, count_failures
from gripline.statistics import mean_interval
from gripline.types import EpisodeRecord

UNCLASSIFIED = "not_classified"
"""Failures in results of before there were types."""


@dataclass(frozen=True)
class Failures:
    """Failed episodes of one group by type, in the order of `gripline.failures.FAILURES`; `n`: all of its episodes."""

    n: int
    by_type: dict[str, int]


@dataclass(frozen=True)
class Measure:
    """Something that is measured in each episode. Example: the peak contact force, of which less is better."""

    name: str
    label: str
    unit: str
    scale: float = 1.0
    """From the record's unit to `unit`."""

    @property
    def more_is_better(self) -> bool:
        """Or less."""
        return self.name in MORE_IS_BETTER


@dataclass(frozen=True)
class Conduct:
    """One measure of both policies on the IID episodes. Values in the measure's unit."""

    measure: Measure
    sft: tuple[float, ...]
    rl: tuple[float, ...]
    """One value for each episode; of steps to success, for each that succeeds."""
    num_both: int
    """Initial states from which both policies succeed."""
    difference: float | None
    """RL - SFT, mean over these; None when there are none."""
    ci95: tuple[float, float] | None
    """Of `difference`; None for fewer than two."""

    @property
    def verdict(self) -> str:
        """'better' or 'worse' where the interval excludes zero, else ''."""
        if self.ci95 is None or self.ci95[0] <= 0 <= self.ci95[1]:
            return ""
        return "better" if (self.ci95[0] > 0) == self.measure.more_is_better else "worse"


STEPS = Measure(STEPS_TO_SUCCESS, "steps to success", "control steps")
MEASURES = (
    STEPS,
    Measure("joint_margin", "smallest distance to a joint limit", "% of the joint's range", 100),
    Measure("peak_joint_speed_rad_s", "peak joint speed", "rad/s"),
    Measure("peak_contact_force_n", "peak contact force", "N"),
    Measure("jerk_rms_m_s3", "jerk of the hand, RMS", "m/s³"),
)


def is_counted(record: EpisodeRecord) -> bool:
    """IID and OOD episodes that finished: ablations fail on purpose."""
    return not record.error and (record.spec.split == "ood" or record.spec.axis == "iid")


def has_failure_types(*evaluations: Sequence[EpisodeRecord]) -> bool:
    """Whether any record says how it failed."""
    return any(record.failure for records in evaluations for record in records)


def failures_by(
    records: Sequence[EpisodeRecord], group: Callable[[EpisodeRecord], str] = lambda record: ""
) -> dict[str, Failures]:
    """Of IID and OOD episodes, for each value of `group` in the order of the records."""
    members: dict[str, list[EpisodeRecord]] = {}
    for record in records:
        if is_counted(record):
            members.setdefault(group(record), []).append(record)
    return {name: _failures(own) for name, own in members.items()}


def conduct(sft_records: Sequence[EpisodeRecord], rl_records: Sequence[EpisodeRecord]) -> list[Conduct]:
    """Of IID episodes, each measure that both policies have values of."""
    sft, rl = _iid(sft_records), _iid(rl_records)
    solved = [key for key, record in sft.items() if record.success and key in rl and rl[key].success]
    compared = []
    for measure in MEASURES:
        before, after = _values(sft, measure), _values(rl, measure)
        if before and after:
            both = [key for key in solved if key in before and key in after]
            gains = _by_state({key: after[key] - before[key] for key in both}, sft)
            compared.append(
                Conduct(
                    measure=measure,
                    sft=tuple(before.values()),
                    rl=tuple(after.values()),
                    num_both=len(gains),
                    difference=fmean(gains) if gains else None,
                    ci95=mean_interval(gains) if len(gains) > 1 else None,
                )
            )
    return compared


def number(value: float) -> str:
    """Three significant digits: '0.0123', '1,230'."""
    return f"{float(f'{value:.3g}'):,.10g}"


def _failures(records: Sequence[EpisodeRecord]) -> Failures:
    by_type = count_failures(records)
    others = sum(not record.success for record in records) - sum(by_type.values())
    return Failures(n=len(records), by_type=by_type | ({UNCLASSIFIED: others} if others else {}))


def _by_state(values: dict[str, float], records: dict[str, EpisodeRecord]) -> list[float]:
    """The mean for each initial state: several sampled episodes of one are not independent."""
    states: dict[tuple[str, str, int, str], list[float]] = {}
    for key, value in values.items():
        states.setdefault(records[key].spec.init_state_key, []).append(value)
    return [fmean(own) for own in states.values()]


def _iid(records: Sequence[EpisodeRecord]) -> dict[str, EpisodeRecord]:
    return {record.spec.key: record for record in records if is_counted(record) and record.spec.split == "iid"}


def _values(records: dict[str, EpisodeRecord], measure: Measure) -> dict[str, float]:
    if measure is STEPS:
        return {key: float(record.num_steps) for key, record in records.items() if record.success}
    measured = {
        key: getattr(record.conduct, measure.name) for key, record in records.items() if record.conduct is not None
    }
    return {key: measure.scale * value for key, value in measured.items() if value is not None}

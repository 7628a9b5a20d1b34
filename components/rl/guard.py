"""The guard: does success come with more force, jerk or speed, or less margin, than the SFT policy needed?

An outcome reward says nothing of how a task was done, so RL may find ways that no robot would survive. The guard
compares the successes of each task with the SFT policy's own, and with absolute limits. It draws nothing and learns
nothing: what is learned changes in mode 'penalise' alone.
"""

import operator
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from gripline import progress
from gripline.errors import UserError
from gripline.failures import FAILURES, MORE_IS_BETTER, STEPS_TO_SUCCESS, conduct_values, count_failures
from gripline.guard_config import GuardConfig, LimitConfig
from gripline.types import EpisodeRecord

Source = Literal["train", "val"]
MIN_SUCCESSES = 5
"""Of a task, before their median is judged or becomes the SFT policy's level."""
HARMLESS = {
    "joint_margin": 0.02,
    "peak_joint_speed_rad_s": 1.0,
    "peak_contact_force_n": 10.0,
    "jerk_rms_m_s3": 20.0,
}
"""A factor over the SFT policy's level is no violation on this side of these: twice nearly nothing is nothing."""


class Violation(BaseModel):
    """A task's successes that went beyond a limit: their median did."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Source
    task: str
    quantity: str
    value: float


class Memory(BaseModel):
    """What the guard knows from earlier iterations; part of the resumable state."""

    model_config = ConfigDict(extra="forbid")

    sft: dict[Source, dict[str, dict[str, float]]] = {}
    """The SFT policy's levels: by source, task and quantity."""
    violation: Violation | None = None
    """The latest."""


@dataclass(frozen=True)
class Bound:
    """A limit with its reason."""

    value: float
    why: str


class Guard:
    """Watches the episodes of every iteration and of every validation."""

    def __init__(self, config: GuardConfig, memory: Memory) -> None:
        """memory: is kept up to date."""
        self._config, self._memory = config, memory
        self._told: set[str] = set()

    def watch(
        self, source: Source, ended: Sequence[EpisodeRecord], judged: Sequence[EpisodeRecord]
    ) -> dict[str, float]:
        """Take note of an iteration; returns its metrics.

        ended: every episode that ended, whose failures are counted. judged: those that the schedule has no say in
        (groups to learn from, a whole validation list), so that the guard says the same on every machine.
        """
        successes = [record for record in judged if record.success]
        metrics = self._metrics(source, ended, successes)
        by_task = {task: [record for record in successes if record.spec.task == task] for task in _tasks(successes)}
        levels = {task: _levels(own) for task, own in by_task.items() if len(own) >= MIN_SUCCESSES}
        known = self._memory.sft.setdefault(source, {})
        for task, level in levels.items():
            if task not in known:
                known[task] = level
        if self._config.mode != "off":
            for task, level in levels.items():
                self._judge(source, task, level)
        return metrics

    def penalty(self, record: EpisodeRecord) -> float:
        """What this episode loses of its reward; 0 unless it is a success that violates a limit, in mode 'penalise'."""
        if self._config.mode != "penalise" or not record.success or record.conduct is None:
            return 0.0
        for quantity, value in record.conduct:
            if value is not None and self._violated("train", record.spec.task, quantity, value) is not None:
                return self._config.penalty
        return 0.0

    @staticmethod
    def shown(metrics: dict[str, float]) -> dict[str, float]:
        """What the progress line tells: the commonest failure and the force of successes, where they are known."""
        prefix = "guard/train/failure/"
        shares = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
        commonest = max(shares, key=lambda name: shares[name], default="")
        shown = {commonest: shares[commonest]} if shares.get(commonest) else {}
        force = metrics.get("guard/train/conduct/peak_contact_force_n")
        return shown if force is None else shown | {"force_n": force}

    @property
    def stops(self) -> bool:
        """Whether `check` would end RL."""
        return self._config.mode == "stop" and self._standing() is not None

    def check(self) -> None:
        """In mode 'stop': raise UserError if the latest violation is still one under the present limits."""
        violation, bound = self._memory.violation, self._standing()
        if self._config.mode != "stop" or violation is None or bound is None:
            return
        raise UserError(
            "rl",
            f"rl.guard.{violation.quantity}",
            _text(violation, bound),
            "look at guard/ in the run's metrics and at videos of its policy: is the task done as it should be? "
            "If so, raise the limit or set rl.guard.mode to warn, and start the same run again: it continues",
        )

    def _judge(self, source: Source, task: str, levels: dict[str, float]) -> None:
        for quantity, value in levels.items():
            bound = self._violated(source, task, quantity, value)
            if bound is None:
                continue
            self._memory.violation = violation = Violation(source=source, task=task, quantity=quantity, value=value)
            if quantity not in self._told:
                self._told.add(quantity)
                progress.emit("rl", "warn", text=f"guard: {_text(violation, bound)}")

    def _standing(self) -> Bound | None:
        """The bound that the latest violation is beyond; None without one, or under limits that were raised since."""
        found = self._memory.violation
        return None if found is None else self._violated(found.source, found.task, found.quantity, found.value)

    def _violated(self, source: Source, task: str, quantity: str, value: float) -> Bound | None:
        limit = self._config.limits[quantity]
        sft = self._memory.sft.get(source, {}).get(task, {}).get(quantity)
        beyond = operator.lt if quantity in MORE_IS_BETTER else operator.gt
        return next((bound for bound in _bounds(quantity, limit, sft) if beyond(value, bound.value)), None)

    def _metrics(
        self, source: Source, ended: Sequence[EpisodeRecord], successes: Sequence[EpisodeRecord]
    ) -> dict[str, float]:
        metrics: dict[str, float] = {}
        if any(record.failure or record.conduct is not None for record in ended):
            counts = count_failures(ended)
            metrics |= {f"guard/{source}/failure/{name}": counts.get(name, 0) / len(ended) for name in FAILURES}
        metrics |= {f"guard/{source}/conduct/{name}": value for name, value in _medians(successes).items()}
        if self._config.mode == "penalise" and source == "train" and successes:
            penalised = sum(self.penalty(record) > 0 for record in successes)
            metrics["guard/train/penalised"] = penalised / len(successes)
        return metrics


def _tasks(records: Sequence[EpisodeRecord]) -> list[str]:
    return list(dict.fromkeys(record.spec.task for record in records))


def _medians(records: Sequence[EpisodeRecord]) -> dict[str, float]:
    """Not means: contact forces have a long tail, and one unlucky contact must not look like a habit."""
    return {name: statistics.median(values) for name, values in conduct_values(records).items()}


def _levels(records: Sequence[EpisodeRecord]) -> dict[str, float]:
    return {name: value for name, value in _medians(records).items() if name != STEPS_TO_SUCCESS}


def _bounds(quantity: str, limit: LimitConfig, sft: float | None) -> list[Bound]:
    bounds = []
    if limit.absolute is not None:
        bounds.append(Bound(limit.absolute, f"rl.guard.{quantity}.absolute"))
    if limit.factor is not None and sft is not None:
        milder = min if quantity in MORE_IS_BETTER else max
        value = milder(limit.factor * sft, HARMLESS[quantity])
        bounds.append(Bound(value, f"{limit.factor:g} x the SFT policy's {sft:.3g}"))
    return bounds


def _text(violation: Violation, bound: Bound) -> str:
    side = "below" if violation.quantity in MORE_IS_BETTER else "above"
    where = f"the median success of {violation.task} in {'training' if violation.source == 'train' else 'validation'}"
    return f"{violation.quantity} of {where} is {violation.value:.3g}, {side} the limit {bound.value:.3g} ({bound.why})"

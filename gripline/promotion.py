"""The rules by which RL's policy replaces SFT's. Each says in one sentence what it saw, whether it holds or not."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from gripline.config import PromoteConfig
from gripline.failures import MORE_IS_BETTER, STEPS_TO_SUCCESS

if TYPE_CHECKING:
    from gripline.summary import Difference, Paired, PolicySummary


class Decision(NamedTuple):
    """Whether the RL policy replaces the SFT policy."""

    promoted: bool
    reasons: tuple[str, ...]
    """One sentence per rule, beginning with ✓ or ✗."""


class _Rule(NamedTuple):
    holds: bool
    text: str


def promotion_decision(
    sft: "PolicySummary",
    rl: "PolicySummary",
    paired: "Paired",
    config: PromoteConfig,
    *,
    lost: Mapping[str, float],
    indifferent: Sequence[str],
    indifference_threshold: float,
) -> Decision:
    """Every rule must hold: a sure gain on IID, no fall on OOD, few episodes lost to the simulator, and a policy that
    sees and reads (or the configuration's word that it need not).

    lost: share of the episodes of 'IID' and of each 'OOD <axis>' that have no pair, because the simulator failed with
    one policy or both. indifferent: what `gripline.summary.indifference_warnings` says of RL's policy.
    """
    rules = [
        _gain(paired, config.min_gain),
        *_ood(paired, config.ood_tolerance),
        *_lost(lost, config.max_lost),
        *_inputs(rl, indifferent, indifference_threshold, allowed=config.allow_indifferent),
        *_conduct(sft, rl, config.conduct_tolerance),
    ]
    reasons = tuple(f"{'✓' if rule.holds else '✗'} {rule.text}" for rule in rules)
    return Decision(all(rule.holds for rule in rules), reasons)


def _gain(paired: "Paired", least: float) -> _Rule:
    low = paired.iid.ci95[0]
    return _Rule(low > least, f"gain on IID: lower 95 % bound {low:+.3f} is {_relation(low, least)} {least:+.3f}")


def _ood(paired: "Paired", tolerance: float) -> list[_Rule]:
    """Non-inferiority over all OOD episodes, where there are enough of them to show it; a veto of single axes that
    surely fall, and by more than is tolerated.

    One axis has too few episodes for either by itself: with 60, an axis on which nothing changes falls by 0.1 now and
    then, and one that falls by 0.15 cannot be told from it.
    """
    beyond = {axis: each for axis, each in paired.ood.items() if each.difference < -tolerance}
    rules = [
        _Rule(each.ci95[1] >= 0, _fall(axis, each, tolerance, sure=each.ci95[1] < 0)) for axis, each in beyond.items()
    ]
    if paired.ood_all is not None:
        low = paired.ood_all.ci95[0]
        text = f"lower 95 % bound {low:+.3f} is {_relation(low, -tolerance)} {-tolerance:+.3f}"
        rules.append(_Rule(low > -tolerance, f"OOD, all axes together: {text} (n {paired.ood_all.n})"))
    return rules


def _fall(axis: str, found: "Difference", tolerance: float, *, sure: bool) -> str:
    text = f"OOD {axis}: falls by {-found.difference:.3f}, more than {tolerance}"
    return text if sure else f"{text}, but within noise (n {found.n}, 95 % interval to {found.ci95[1]:+.3f})"


def _lost(lost: Mapping[str, float], most: float) -> Iterable[_Rule]:
    """What was not measured is not known to be well."""
    for name, share in lost.items():
        if share > most:
            text = f"{name}: {share:.0%} of the episodes were lost to the simulator, more than {most:.0%}"
            yield _Rule(False, f"{text}; run the evaluation again")


def _inputs(rl: "PolicySummary", indifferent: Sequence[str], threshold: float, *, allowed: bool) -> list[_Rule]:
    note = " (allowed by promote.allow_indifferent)" if allowed else ""
    rules = [_Rule(allowed, f"inputs: {text}{note}") for text in indifferent]
    if any(rate.intact for rate in rl.ablations.values()) and not indifferent:
        left = f"at most {threshold:.0%} of its success is left"
        rules.append(_Rule(True, f"inputs: {left} with a black image or a wrong instruction"))
    return rules


def _conduct(sft: "PolicySummary", rl: "PolicySummary", tolerance: float | None) -> Iterable[_Rule]:
    """Reward hacking shows where success rises and the robot gets rougher."""
    if tolerance is None:
        return
    both = [name for name in sft.conduct if name in rl.conduct and name != STEPS_TO_SUCCESS]
    worse = {name: _worsening(name, sft.conduct[name], rl.conduct[name]) for name in both}
    fallen = {name: by for name, by in worse.items() if by > tolerance}
    for name, by in fallen.items():
        change = f"{sft.conduct[name]:.3g} → {rl.conduct[name]:.3g}"
        yield _Rule(False, f"conduct: {name} {change}, worse by {by:.0%}, more than {tolerance:.0%}")
    if not both:
        yield _Rule(False, "conduct: promote.conduct_tolerance is set, but this suite measures no conduct")
    elif not fallen:
        yield _Rule(True, f"conduct: no measure gets worse by more than {tolerance:.0%}")


def _worsening(name: str, before: float, after: float) -> float:
    """As a share of the value before; negative where it got better."""
    by = before - after if name in MORE_IS_BETTER else after - before
    return by / max(abs(before), 1e-9)


def _relation(value: float, bound: float) -> str:
    return "above" if value > bound else "not above"

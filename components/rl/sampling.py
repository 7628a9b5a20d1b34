"""Dynamic sampling: draw rounds of groups until enough have mixed outcomes. No Ray here, only specs and outcomes.

Which groups an update learns from is settled by the order in which they were drawn, never by who finished first, unless
`rl.take` says so: that would favour short successes and depend on the schedule.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from gripline.algorithms.grpo import group_advantages, is_mixed
from gripline.config import RlConfig
from gripline.types import EpisodeSpec

LEAST_SHARE = 0.25
"""A task of which no group was mixed lately still counts for this much."""


@dataclass(frozen=True)
class MixedGroup:
    """A group that an update can learn from; a member whose simulator failed is left out."""

    first: int
    """Position of the group's first episode in the round's list of specs."""
    members: tuple[int, ...]
    """Positions of the usable members."""
    advantages: tuple[float, ...]


class Round:
    """One round of groups while it runs: what is decided, what will be learned from, what cannot matter any more."""

    def __init__(self, specs: list[EpisodeSpec], config: RlConfig, *, needed: int) -> None:
        """needed: how many mixed groups the update still lacks."""
        self._config, self._needed = config, needed
        self._tasks = [spec.task for spec in specs[:: config.group_size]]
        self.num_groups = len(self._tasks)
        self._success: dict[int, bool | None] = {}
        """How episodes ended, by position; None: the simulator failed."""
        self._penalty: dict[int, float] = {}
        self._left = [config.group_size] * self.num_groups
        self._decided: list[int] = []
        """Groups without running members, in the order in which they came to that."""
        self._useless: set[int] = set()
        """Groups that will certainly not be learned from."""

    def ended(self, index: int, success: bool | None, penalty: float = 0.0) -> set[int]:
        """Note how an episode ended (None: its simulator failed); returns running episodes that became useless.

        An episode that was cancelled because it had become useless is reported with None too. penalty: what a success
        loses of its reward. Which groups are mixed depends on success alone, so that it means the same with penalties.
        """
        group = index // self._config.group_size
        self._success[index], self._penalty[index] = success, penalty
        self._left[group] -= 1
        if not self._left[group]:
            self._decided.append(group)
        before = set(self._useless)
        if not self._can_be_mixed(group):
            self._useless.add(group)
        if self._config.surplus == "drop" and len(taken := self.taken()) >= self._needed:
            wanted = {mixed.first // self._config.group_size for mixed in taken}
            self._useless |= set(range(self.num_groups)) - wanted
        return {member for other in self._useless - before for member in self._members(other)} - set(self._success)

    def mixed_share(self) -> dict[str, float]:
        """Of a finished round: which share of each task's groups had mixed outcomes."""
        mixed: dict[str, list[bool]] = {}
        for group in range(self.num_groups):
            mixed.setdefault(self._tasks[group], []).append(self._mixed(group) is not None)
        return {task: sum(values) / len(values) for task, values in mixed.items()}

    def taken(self) -> list[MixedGroup]:
        """The mixed groups to learn from, as far as that is certain."""
        if self._config.take == "completion":
            order = self._decided
        else:  # a later group counts only when all before it are decided
            undecided = (group for group in range(self.num_groups) if self._left[group] and group not in self._useless)
            order = list(range(next(undecided, self.num_groups)))
        mixed = [found for group in order if (found := self._mixed(group)) is not None]
        return mixed if self._config.surplus == "train" else mixed[: self._needed]

    def surplus(self) -> list[MixedGroup]:
        """The mixed groups of a finished round beyond those taken, in draw order."""
        taken = {mixed.first for mixed in self.taken()}
        mixed = (self._mixed(group) for group in range(self.num_groups))
        return [found for found in mixed if found is not None and found.first not in taken]

    def _members(self, group: int) -> range:
        return range(group * self._config.group_size, (group + 1) * self._config.group_size)

    def _mixed(self, group: int) -> MixedGroup | None:
        if self._left[group] or group in self._useless:
            return None
        members = tuple(index for index in self._members(group) if self._success[index] is not None)
        successes_G = np.array([float(bool(self._success[index])) for index in members])
        if len(members) < 2 or not is_mixed(successes_G, self._config.keep_success):
            return None
        rewards_G = successes_G - np.array([self._penalty[index] for index in members])
        advantages_G = group_advantages(rewards_G, normalise_std=self._config.normalise_std)
        return MixedGroup(self._members(group)[0], members, tuple(float(value) for value in advantages_G))

    def _can_be_mixed(self, group: int) -> bool:
        """Whether some outcome of the running members puts the success rate within the bounds."""
        ended = [self._success[index] for index in self._members(group) if index in self._success]
        usable = [success for success in ended if success is not None]
        possible = len(usable) + self._left[group]
        low, high = self._config.keep_success
        return possible >= 2 and sum(usable) / possible <= high and low <= (sum(usable) + self._left[group]) / possible


def allocate(mixed_share: dict[str, float], config: RlConfig) -> dict[str, int]:
    """Groups that each task gets in the next round, adding up to `groups_per_task` a task.

    mixed_share: how much of a task's latest groups was mixed. 'adaptive' follows it, so that a task that is learned (or
    out of reach) does not take rollouts from one that is being learned, but never starves a task.
    """
    if config.allocation == "equal":
        return dict.fromkeys(mixed_share, config.groups_per_task)
    total = config.groups_per_task * len(mixed_share)
    weights = {task: max(share, LEAST_SHARE) for task, share in mixed_share.items()}
    exact = {task: total * weight / sum(weights.values()) for task, weight in weights.items()}
    counts = {task: max(1, int(value)) for task, value in exact.items()}
    while sum(counts.values()) < total:
        counts[max(exact, key=lambda task: exact[task] - counts[task])] += 1
    while sum(counts.values()) > total:  # tasks that were raised to one group
        counts[max(counts, key=lambda task: counts[task])] -= 1
    return counts


def draw_round(
    train: dict[str, list[EpisodeSpec]], drawn: dict[str, int], counts: dict[str, int], *, group_size: int, seed: int
) -> list[EpisodeSpec]:
    """Specs of the next round, members of a group next to each other, tasks taking turns.

    drawn: how many groups each task has had since the run began; counted up here, and part of what a resume needs.
    counts: how many each task gets now.
    """
    specs: list[EpisodeSpec] = []
    for turn in range(max(counts.values())):
        for task, states in train.items():
            if turn >= counts[task]:
                continue
            draw = drawn[task]
            drawn[task] = draw + 1
            base = states[draw % len(states)]
            specs += [
                base.model_copy(
                    update={"group": draw, "member": member, "noise_seed": noise_seed(seed, task, draw, member)}
                )
                for member in range(group_size)
            ]
    return specs


def noise_seed(seed: int, task: str, draw: int, member: int) -> int:
    """63 bits that depend on nothing but who the episode is."""
    digest = hashlib.sha256(f"{seed}/{task}/{draw}/{member}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

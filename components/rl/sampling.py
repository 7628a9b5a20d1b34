"""Dynamic sampling: draw rounds of groups until enough have mixed outcomes. No Ray here, only specs and outcomes.

All mixed groups of the drawn rounds are used, in draw order, so what is learned from never depends on who finished
first and nothing is thrown away.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from gripline.algorithms.grpo import group_advantages, is_mixed
from gripline.config import RlConfig
from gripline.types import EpisodeSpec


@dataclass(frozen=True)
class GroupOutcome:
    """One group after its rollout: rewards of its members in member order; failed simulators are left out."""

    task: str
    rewards_G: np.ndarray
    members: tuple[int, ...]
    """Positions in the round's list of specs."""


def draw_round(
    train: dict[str, list[EpisodeSpec]], drawn: dict[str, int], config: RlConfig, *, seed: int
) -> list[EpisodeSpec]:
    """Specs of the next round, members of a group next to each other, tasks taking turns.

    drawn: how many groups each task has had since the run began; counted up here, and part of what a resume needs.
    """
    specs: list[EpisodeSpec] = []
    for _ in range(config.groups_per_task):
        for task, states in train.items():
            draw = drawn[task]
            drawn[task] = draw + 1
            base = states[draw % len(states)]
            specs += [
                base.model_copy(
                    update={"group": draw, "member": member, "noise_seed": noise_seed(seed, task, draw, member)}
                )
                for member in range(config.group_size)
            ]
    return specs


def noise_seed(seed: int, task: str, draw: int, member: int) -> int:
    """63 bits that depend on nothing but who the episode is."""
    digest = hashlib.sha256(f"{seed}/{task}/{draw}/{member}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def group_outcomes(specs: list[EpisodeSpec], success: dict[int, bool], group_size: int) -> list[GroupOutcome]:
    """Outcomes in draw order. `success` maps positions in `specs`; a missing position is a failed simulator."""
    groups = []
    for first in range(0, len(specs), group_size):
        members = tuple(index for index in range(first, first + group_size) if index in success)
        rewards_G = np.array([float(success[index]) for index in members], dtype=np.float64)
        groups.append(GroupOutcome(specs[first].task, rewards_G, members))
    return groups


def select(groups: list[GroupOutcome], config: RlConfig) -> list[tuple[int, float]]:
    """(position, advantage) of every episode that an update uses: the members of the groups with mixed outcomes."""
    chosen: list[tuple[int, float]] = []
    for group in groups:
        if len(group.rewards_G) >= 2 and is_mixed(group.rewards_G, config.keep_success):
            advantages_G = group_advantages(group.rewards_G, normalise_std=config.normalise_std)
            chosen += [(index, float(value)) for index, value in zip(group.members, advantages_G, strict=True)]
    return chosen

"""A round of groups while it runs, and an iteration's sampling, on a scripted engine instead of Ray."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.rl.sampler import Sampler
from components.rl.sampling import Round, draw_round
from components.rl.state import ExperienceGroup, RlState, read_groups, write_groups
from gripline.config import RlConfig
from gripline.errors import UserError
from gripline.rollout.stats import RolloutStats
from gripline.types import EpisodeRecord, EpisodeSpec, Trajectory

SIZE = 4


def _states(tasks: int = 1) -> dict[str, list[EpisodeSpec]]:
    return {
        f"task-{t}": [
            EpisodeSpec(suite="s", task=f"task-{t}", instruction="", init_seed=100 * t + i, split="train", axis="train")
            for i in range(5)
        ]
        for t in range(tasks)
    }


def _round(config: RlConfig, needed: int) -> Round:
    return Round(draw_round(_states(), {"task-0": 0}, {"task-0": 4}, group_size=SIZE, seed=0), config, needed=needed)


def _config(**changes: Any) -> RlConfig:
    return RlConfig.model_validate({"group_size": SIZE, "groups_per_task": 4, "min_mixed_groups": 2} | changes)


outcome = st.sampled_from([True, True, False, False, None])


@given(
    st.lists(outcome, min_size=16, max_size=16),
    st.permutations(range(16)),
    st.permutations(range(16)),
    st.sampled_from(["train", "keep", "drop"]),
    st.integers(1, 4),
    st.sampled_from([(0.1, 0.9), (0.25, 0.5), (0.5, 0.75)]),
)
def test_what_is_learned_from_does_not_depend_on_the_order_of_completion(
    outcomes, first_order, second_order, surplus, needed, keep_success
):
    config = _config(surplus=surplus, keep_success=keep_success)
    rounds = []
    for order in (first_order, second_order):
        round_ = _round(config, needed)
        useless: set[int] = set()
        for index in order:
            useless |= round_.ended(index, None if index in useless else outcomes[index])
        rounds.append(round_)
        used = {index for mixed in round_.taken() for index in mixed.members}
        assert not used & useless
    assert rounds[0].taken() == rounds[1].taken()
    if surplus == "keep":
        assert rounds[0].surplus() == rounds[1].surplus()
        assert len(rounds[0].taken()) <= needed


def test_dropping_cancels_only_what_comes_after_the_last_group_that_is_needed():
    round_ = _round(_config(surplus="drop"), 2)
    half = [True, True, False, False]
    assert not any(round_.ended(4 + member, half[member]) for member in range(SIZE))  # group 1: mixed
    assert not any(round_.ended(8 + member, half[member]) for member in range(SIZE))  # group 2: mixed, but group 0 runs
    assert round_.taken() == []
    assert round_.ended(0, True) == round_.ended(1, True) == round_.ended(2, True) == set()
    assert round_.ended(3, True) == {12, 13, 14, 15}  # group 0 is not mixed, so groups 1 and 2 it is
    assert [mixed.first for mixed in round_.taken()] == [4, 8]


def test_the_slow_members_of_a_group_that_will_be_used_are_never_cancelled():
    round_ = _round(_config(surplus="drop"), 1)
    for index in (*range(1, 16),):
        assert 0 not in round_.ended(index, bool(index % 2))
    assert round_.ended(0, True) == set()
    assert [mixed.first for mixed in round_.taken()] == [0]


def test_a_group_that_can_no_longer_be_within_the_bounds_is_cancelled_early():
    round_ = _round(_config(keep_success=(0.25, 0.5)), 4)
    assert round_.ended(0, True) == round_.ended(1, True) == set()
    assert round_.ended(2, True) == {3}
    assert round_.ended(3, None) == set()
    assert round_.taken() == []


def test_completion_order_takes_whoever_is_there_first():
    round_ = _round(_config(surplus="drop", take="completion"), 1)
    for member in range(SIZE - 1):
        round_.ended(12 + member, False)
    assert round_.ended(15, True) == set(range(12))
    assert [mixed.first for mixed in round_.taken()] == [12]


@dataclass
class _Finished:
    index: int
    record: EpisodeRecord
    trajectory: Any


class _Engine:
    """Plays outcomes: group number of the task -> successes of its members. Trajectories can be lost."""

    num_workers = 1

    def __init__(self, outcome_of: Callable[[EpisodeSpec], bool]) -> None:
        self._outcome_of = outcome_of
        self.last = RolloutStats()
        self.lost: list[set[str]] = []
        """What is found to be lost, look by look."""
        self.runs: list[int] = []

    def run(self, specs: list[EpisodeSpec], decoding: Any, *, useless: Any = None) -> Iterator[_Finished]:
        self.runs.append(len(specs))
        self.last = RolloutStats(env_steps=8 * len(specs))
        for index, spec in reversed(list(enumerate(specs))):
            success = self._outcome_of(spec)
            record = EpisodeRecord(spec=spec, success=success, num_steps=8, num_chunks=1, actions_TKA=[])
            again = "" if len(self.runs) == 1 else f" {len(self.runs)}"
            episode = _Finished(index, record, f"{spec.task}/{spec.group}/{spec.member}{again}")
            if useless is not None:
                useless(episode)
            yield episode

    def without_trajectory(self, episodes: Iterable[_Finished]) -> list[_Finished]:
        lost = self.lost.pop(0) if self.lost else set()
        return [episode for episode in episodes if episode.trajectory in lost]


def _sampler(config: RlConfig, outcome_of: Callable[[EpisodeSpec], bool], **engine: Any) -> Sampler:
    state = RlState(fingerprint="f", drawn={"task-0": 0}, mixed_share={"task-0": 1.0})
    player = _Engine(outcome_of)
    vars(player).update(engine)
    return Sampler(player, _states(), config, state, kept=[], seed=0)


def test_trajectories_that_went_with_a_machine_are_run_again(capsys):
    """Catches: an iteration that breaks, or learns from half of a group, because a pod was replaced after its end."""
    lost = [{"task-0/0/1", "task-0/1/3"}, {"task-0/1/3 2"}]
    config = _config(surplus="keep", min_mixed_groups=1)
    sampler = _sampler(config, lambda spec: spec.member == 0, lost=lost)
    sampled = sampler.sample(learner_version=0)
    assert sampler._engine.runs == [16, 2, 1]
    assert sampled.groups[0].trajectories == ("task-0/0/0", "task-0/0/1 2", "task-0/0/2", "task-0/0/3")
    assert sampler.kept[0].trajectories == ("task-0/1/0", "task-0/1/1", "task-0/1/2", "task-0/1/3 3")
    assert (sampler._state.env_steps, len(sampled.rollouts), sampled.episodes) == (8 * 19, 3, 16)
    assert "2 trajectories went with a machine" in capsys.readouterr().out


def test_machines_that_go_faster_than_episodes_can_be_run_again_stop_the_stage():
    lost = [{"task-0/0/0" + again for again in ("", " 2", " 3", " 4")} for _ in range(9)]
    with pytest.raises(RuntimeError, match="lost faster than 1 episodes"):
        _sampler(_config(), lambda spec: spec.member == 0, lost=lost).sample(learner_version=0)


def test_of_groups_that_are_not_learned_from_nothing_is_run_again():
    lost = [{f"task-0/{group}/{member}" for group in (1, 2, 3) for member in range(4)}]
    sampler = _sampler(_config(min_mixed_groups=1), lambda spec: spec.group == 0 and spec.member == 0, lost=lost)
    sampler.sample(learner_version=0)
    assert sampler._engine.runs == [16]


def test_surplus_groups_are_kept_with_their_version_and_used_first():
    sampler = _sampler(_config(surplus="keep", max_staleness=1), lambda spec: spec.member == 0)
    first = sampler.sample(learner_version=0)
    assert [group.trajectories[0] for group in first.groups] == ["task-0/0/0", "task-0/1/0"]
    assert (first.rounds, first.mixed, first.kept) == (1, 4, 2)
    sampler._state.version = 1
    second = sampler.sample(learner_version=1)
    assert [group.trajectories[0] for group in second.groups] == ["task-0/2/0", "task-0/3/0"]
    assert (second.rounds, [group.version for group in second.groups]) == (0, [0, 0])
    assert second.metrics(version=1)["train/staleness_max"] == 1.0


def test_groups_that_grew_too_old_are_dropped_and_counted():
    sampler = _sampler(_config(surplus="keep", max_staleness=1), lambda spec: spec.member == 0)
    sampler.sample(learner_version=0)
    sampler._state.version = 2
    later = sampler.sample(learner_version=2)
    assert later.too_old == 2
    assert [group.version for group in later.groups] == [2, 2]


def test_rounds_are_drawn_until_enough_groups_are_mixed_or_the_cap_is_reached(capsys):
    sampler = _sampler(_config(min_mixed_groups=2, max_rounds=3), lambda spec: spec.group == 5 and spec.member == 0)
    sampled = sampler.sample(learner_version=0)
    assert (sampled.rounds, sampled.mixed, sampled.drawn_groups) == (3, 1, 12)
    assert sampler._state.starving == 0
    nothing = _sampler(_config(), lambda spec: True)
    assert nothing.sample(learner_version=0).groups == []
    assert nothing._state.starving == 1
    nothing.sample(learner_version=0)
    assert nothing._state.starving == 2


def test_an_impossible_filter_is_refused():
    with pytest.raises(ValueError, match="no success rate of 4 episodes lies within"):
        _config(keep_success=(0.3, 0.4))


def _trajectory(length: int) -> Trajectory:
    rng = np.random.default_rng(length)
    return Trajectory(
        instruction=f"open {length}",
        images_TNHWC=rng.integers(0, 256, (length, 1, 4, 4, 3), dtype=np.uint8),
        proprio_TP=rng.standard_normal((length, 2)).astype(np.float32),
        tokens_TKA=rng.integers(0, 256, (length, 1, 3)),
        logprobs_TKA=rng.standard_normal((length, 1, 3)).astype(np.float32),
    )


def test_kept_groups_survive_a_resume_bit_for_bit(tmp_path):
    groups = [ExperienceGroup(3, (_trajectory(2), _trajectory(5)), (0.5, -0.5)), ExperienceGroup(4, (), ())]
    write_groups(tmp_path, groups, lambda trajectory: trajectory)
    back = read_groups(tmp_path, lambda trajectory: trajectory)
    assert [(group.version, group.advantages) for group in back] == [(3, (0.5, -0.5)), (4, ())]
    for before, after in zip(groups[0].trajectories, back[0].trajectories, strict=True):
        assert before.instruction == after.instruction
        np.testing.assert_array_equal(before.images_TNHWC, after.images_TNHWC)
        np.testing.assert_array_equal(before.logprobs_TKA, after.logprobs_TKA)
    (tmp_path / "groups.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="unreadable"):
        read_groups(tmp_path, lambda trajectory: trajectory)

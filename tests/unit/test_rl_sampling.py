"""Dynamic sampling and the resumable state, without Ray or torch."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.rl import state as state_files
from components.rl.sampling import Round, allocate, draw_round, noise_seed
from components.rl.state import RlState
from gripline.config import RlConfig
from gripline.errors import UserError
from gripline.types import EpisodeSpec


def _train(tasks: int = 2, states: int = 3) -> dict[str, list[EpisodeSpec]]:
    return {
        f"task-{t}": [
            EpisodeSpec(suite="s", task=f"task-{t}", instruction="", init_seed=100 * t + i, split="train", axis="train")
            for i in range(states)
        ]
        for t in range(tasks)
    }


def test_members_share_the_initial_state_and_nothing_else():
    specs = draw_round(_train(), {"task-0": 0, "task-1": 0}, {"task-0": 2, "task-1": 2}, group_size=4, seed=1)
    assert len(specs) == 2 * 2 * 4
    for first in range(0, len(specs), 4):
        group = specs[first : first + 4]
        assert len({spec.init_state_key for spec in group}) == 1
        assert len({spec.noise_seed for spec in group}) == 4
        assert [spec.member for spec in group] == [0, 1, 2, 3]
    assert [spec.task for spec in specs[::4]] == ["task-0", "task-1", "task-0", "task-1"]


def test_rounds_go_on_where_the_last_one_stopped_and_noise_differs_after_a_wrap():
    train, counts = _train(tasks=1, states=2), {"task-0": 2}
    drawn = {"task-0": 0}
    first = draw_round(train, drawn, counts, group_size=2, seed=1)
    second = draw_round(train, drawn, counts, group_size=2, seed=1)
    assert drawn == {"task-0": 4}
    assert [spec.init_seed for spec in first] == [spec.init_seed for spec in second]
    assert not {spec.noise_seed for spec in first} & {spec.noise_seed for spec in second}
    resumed = draw_round(train, {"task-0": 2}, counts, group_size=2, seed=1)
    assert resumed == second


def test_noise_depends_on_every_part_of_the_name():
    names = [(1, "a", 0, 0), (2, "a", 0, 0), (1, "b", 0, 0), (1, "a", 1, 0), (1, "a", 0, 1)]
    assert len({noise_seed(*name) for name in names}) == len(names)
    assert all(0 <= noise_seed(*name) < 2**63 for name in names)


@given(st.lists(st.booleans(), min_size=8, max_size=64), st.sets(st.integers(0, 63)))
def test_only_members_of_mixed_groups_are_learned_from(outcomes, failed):
    outcomes = outcomes[: len(outcomes) // 4 * 4]
    specs = draw_round(_train(tasks=1), {"task-0": 0}, {"task-0": len(outcomes) // 4}, group_size=4, seed=0)
    round_ = Round(specs, RlConfig(group_size=4, keep_success=(0.1, 0.9)), needed=1)
    success = {index: None if index in failed else value for index, value in enumerate(outcomes)}
    for index, value in success.items():
        round_.ended(index, value)
    learned = {
        index: value for mixed in round_.taken() for index, value in zip(mixed.members, mixed.advantages, strict=True)
    }
    assert not set(learned) & failed
    for first in range(0, len(outcomes), 4):
        members = [index for index in range(first, first + 4) if index not in failed]
        both = len({success[index] for index in members}) == 2
        assert set(learned) & set(members) == (set(members) if both else set())
    assert all((advantage > 0) == success[index] for index, advantage in learned.items())


def test_only_a_folder_with_the_mark_is_a_state():
    """Catches: a resume from tensors of a process that was killed before it had written all of it."""
    files = [
        f"rl/state/iteration-{number:06d}/{name}" for number in (4, 10, 2) for name in ("learner.pt", "state.json")
    ]
    files += ["rl/state/iteration-000012/learner.pt", "rl/state/iteration-000012/groups.safetensors"]
    assert state_files.complete(files) == [f"rl/state/iteration-{number:06d}" for number in (2, 4, 10)]
    assert state_files.complete([]) == []


def test_state_comes_back_as_it_was(tmp_path):
    state = RlState(fingerprint="f", iteration=6, drawn={"a": 6}, mixed_share={"a": 0.25}, best_success=0.5)
    state_files.write(tmp_path, state)
    assert state_files.read(tmp_path, "f") == state


def test_state_of_another_configuration_or_a_damaged_one_is_refused(tmp_path):
    state_files.write(tmp_path, RlState(fingerprint="f", iteration=2, drawn={}, mixed_share={}))
    with pytest.raises(UserError, match="another configuration"):
        state_files.read(tmp_path, "g")
    (tmp_path / "state.json").write_text('{"fingerprint": "f"')
    with pytest.raises(UserError, match="unreadable"):
        state_files.read(tmp_path, "f")


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.floats(0, 1), min_size=1, max_size=6), st.integers(2, 12))
def test_adaptive_allocation_spends_the_same_and_starves_nobody(mixed_share, groups_per_task):
    config = RlConfig(groups_per_task=groups_per_task, allocation="adaptive")
    counts = allocate(mixed_share, config)
    assert sum(counts.values()) == groups_per_task * len(mixed_share)
    assert min(counts.values()) >= 1
    ordered = sorted(mixed_share, key=lambda task: mixed_share[task])
    assert all(counts[low] <= counts[high] + 1 for low, high in itertools.pairwise(ordered))
    assert set(allocate(mixed_share, RlConfig(groups_per_task=groups_per_task)).values()) == {groups_per_task}

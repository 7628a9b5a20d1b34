"""Dynamic sampling and the resumable state, without Ray or torch."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.rl import state as state_files
from components.rl.sampling import draw_round, group_outcomes, noise_seed, select
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


def _save_tensors(path: str) -> None:
    Path(path).write_bytes(b"x")


def test_members_share_the_initial_state_and_nothing_else():
    specs = draw_round(_train(), {"task-0": 0, "task-1": 0}, RlConfig(groups_per_task=2, group_size=4), seed=1)
    assert len(specs) == 2 * 2 * 4
    for first in range(0, len(specs), 4):
        group = specs[first : first + 4]
        assert len({spec.init_state_key for spec in group}) == 1
        assert len({spec.noise_seed for spec in group}) == 4
        assert [spec.member for spec in group] == [0, 1, 2, 3]
    assert [spec.task for spec in specs[::4]] == ["task-0", "task-1", "task-0", "task-1"]


def test_rounds_go_on_where_the_last_one_stopped_and_noise_differs_after_a_wrap():
    train, config = _train(tasks=1, states=2), RlConfig(groups_per_task=2, group_size=2)
    drawn = {"task-0": 0}
    first = draw_round(train, drawn, config, seed=1)
    second = draw_round(train, drawn, config, seed=1)
    assert drawn == {"task-0": 4}
    assert [spec.init_seed for spec in first] == [spec.init_seed for spec in second]
    assert not {spec.noise_seed for spec in first} & {spec.noise_seed for spec in second}
    resumed = draw_round(train, {"task-0": 2}, config, seed=1)
    assert resumed == second


def test_noise_depends_on_every_part_of_the_name():
    names = [(1, "a", 0, 0), (2, "a", 0, 0), (1, "b", 0, 0), (1, "a", 1, 0), (1, "a", 0, 1)]
    assert len({noise_seed(*name) for name in names}) == len(names)
    assert all(0 <= noise_seed(*name) < 2**63 for name in names)


@given(st.lists(st.booleans(), min_size=8, max_size=64), st.sets(st.integers(0, 63)))
def test_only_members_of_mixed_groups_are_learned_from(outcomes, failed):
    outcomes = outcomes[: len(outcomes) // 4 * 4]
    specs = draw_round(
        _train(tasks=1), {"task-0": 0}, RlConfig(groups_per_task=len(outcomes) // 4, group_size=4), seed=0
    )
    success = {index: value for index, value in enumerate(outcomes) if index not in failed}
    chosen = select(group_outcomes(specs, success, 4), RlConfig(group_size=4, keep_success=(0.1, 0.9)))
    used = {index for index, _ in chosen}
    assert not used & failed
    for first in range(0, len(outcomes), 4):
        members = [index for index in range(first, first + 4) if index in success]
        mixed = len({success[index] for index in members}) == 2
        assert used & set(members) == (set(members) if mixed else set())
    assert all((advantage > 0) == success[index] for index, advantage in chosen)


def test_state_is_written_whole_and_old_ones_are_dropped(tmp_path):
    for iteration in (2, 4, 6):
        state = RlState(fingerprint="f", iteration=iteration, drawn={"a": iteration})
        state_files.write(tmp_path, state, _save_tensors, keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["iteration-000004", "iteration-000006"]
    newest = state_files.latest(tmp_path)
    assert newest is not None and state_files.read(newest, "f").drawn == {"a": 6}


def test_a_full_disk_leaves_the_older_state_alone(tmp_path):
    def disk_full(path: str) -> None:
        raise OSError(28, "No space left on device")

    state = RlState(fingerprint="f", iteration=2, drawn={})
    state_files.write(tmp_path, state, _save_tensors, keep=2)
    with pytest.raises(UserError, match="No space left"):
        state_files.write(tmp_path, state.model_copy(update={"iteration": 4}), disk_full, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["iteration-000002"]


def test_state_of_another_configuration_or_a_damaged_one_is_refused(tmp_path):
    state = RlState(fingerprint="f", iteration=2, drawn={})
    path = state_files.write(tmp_path, state, _save_tensors, keep=2)
    with pytest.raises(UserError, match="another configuration"):
        state_files.read(path, "g")
    (path / "state.json").write_text('{"fingerprint": "f"')
    with pytest.raises(UserError, match="unreadable"):
        state_files.read(path, "f")


def test_a_group_whose_simulators_failed_is_left_out():
    specs = draw_round(_train(tasks=1), {"task-0": 0}, RlConfig(groups_per_task=1, group_size=4), seed=0)
    groups = group_outcomes(specs, {0: True}, 4)
    assert select(groups, RlConfig()) == []
    np.testing.assert_array_equal(groups[0].rewards_G, [1.0])

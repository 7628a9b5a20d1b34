"""RL's guard: what it notices, in which mode it does what, and that it forgets nothing. No Ray, no simulator."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from components.rl.guard import HARMLESS, MIN_SUCCESSES, Guard, Memory
from components.rl.sampling import Round
from gripline.config import RlConfig
from gripline.errors import UserError
from gripline.guard_config import GuardConfig
from gripline.types import Conduct, EpisodeRecord, EpisodeSpec

FORCE = "peak_contact_force_n"


def episode(
    force_n: float | None = 30.0, *, success: bool = True, task: str = "push", **conduct: float
) -> EpisodeRecord:
    spec = EpisodeSpec(suite="s", task=task, instruction="", init_seed=0, split="train")
    return EpisodeRecord(
        spec=spec,
        success=success,
        num_steps=40,
        num_chunks=5,
        failure="" if success else "dropped",
        conduct=Conduct.model_validate({FORCE: force_n} | conduct),
    )


def guard(memory: Memory | None = None, **config: Any) -> Guard:
    return Guard(GuardConfig.model_validate(config), memory if memory is not None else Memory())


def iterate(watcher: Guard, *forces_n: float, **conduct: float) -> list[dict[str, float]]:
    """An iteration for each force."""
    rows = []
    for force_n in forces_n:
        successes = [episode(force_n, **conduct) for _ in range(MIN_SUCCESSES)]
        rows.append(watcher.watch("train", [*successes, episode(999.0, success=False)], successes))
    return rows


def test_metrics_are_shares_of_all_that_ended_and_medians_of_successes() -> None:
    """Catches: failures, which push harder, among the successes whose force is judged."""
    row = iterate(guard(), 30.0)[0]
    assert row["guard/train/failure/dropped"] == pytest.approx(1 / 6)
    assert row["guard/train/failure/collision"] == 0.0
    assert row["guard/train/conduct/peak_contact_force_n"] == 30.0
    assert row["guard/train/conduct/steps_to_success"] == 40.0
    assert Guard.shown(row) == {"dropped": pytest.approx(1 / 6), "force_n": 30.0}


def test_an_environment_that_measures_nothing_has_no_metrics_but_steps() -> None:
    bare = episode().model_copy(update={"conduct": None})
    assert set(guard().watch("val", [bare], [bare])) == {"guard/val/conduct/steps_to_success"}


def test_a_warning_names_quantity_value_and_limit_and_comes_once(capsys: pytest.CaptureFixture[str]) -> None:
    iterate(guard(), 30.0, 59.0, 61.0, 90.0)
    told = [line for line in capsys.readouterr().out.splitlines() if "guard" in line]
    assert told == [
        "[rl] warn guard: peak_contact_force_n of the median success of push in training is 61, above the limit 60 "
        "(2 x the SFT policy's 30)"
    ]


def test_off_says_nothing_and_still_logs(capsys: pytest.CaptureFixture[str]) -> None:
    assert "guard/train/conduct/peak_contact_force_n" in iterate(guard(mode="off"), 30.0, 300.0)[1]
    assert capsys.readouterr().out == ""


def test_less_margin_is_worse(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = guard()
    iterate(watcher, 30.0, joint_margin=0.3)
    iterate(watcher, 30.0, joint_margin=0.4)
    assert capsys.readouterr().out == ""
    iterate(watcher, 30.0, joint_margin=0.01)
    assert (
        "joint_margin of the median success of push in training is 0.01, below the limit 0.02"
        in capsys.readouterr().out
    )


def test_tasks_are_compared_with_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a warning because the rollouts moved to a task that needs more force."""
    watcher = guard()
    for shares in ((9, MIN_SUCCESSES), (MIN_SUCCESSES, 40)):
        records = [episode(20.0, task="push")] * shares[0] + [episode(200.0, task="door")] * shares[1]
        watcher.watch("train", records, records)
    assert capsys.readouterr().out == ""


def test_few_successes_are_neither_judged_nor_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = guard()
    few = [episode(1.0)] * (MIN_SUCCESSES - 1)
    watcher.watch("train", few, few)
    iterate(watcher, 100.0)
    few = [episode(900.0)] * (MIN_SUCCESSES - 1)
    watcher.watch("train", few, few)
    assert capsys.readouterr().out == ""


def test_twice_nearly_nothing_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    iterate(guard(), 0.0, HARMLESS[FORCE])
    assert capsys.readouterr().out == ""
    iterate(guard(), 0.0, HARMLESS[FORCE] + 1)
    assert "guard" in capsys.readouterr().out


def test_an_absolute_limit_holds_from_the_first_iteration_and_for_the_sft_policy_itself() -> None:
    watcher = guard(mode="stop", peak_contact_force_n={"absolute": 50.0})
    iterate(watcher, 60.0)
    with pytest.raises(UserError, match=r"above the limit 50 \(rl.guard.peak_contact_force_n.absolute\)"):
        watcher.check()


def test_stop_is_remembered_and_lifted_by_a_milder_guard() -> None:
    """Catches: a stopped run that goes on for an iteration at every start, and one that can never go on."""
    memory = Memory()
    watcher = guard(memory, mode="stop")
    iterate(watcher, 30.0)
    watcher.check()
    iterate(watcher, 100.0)
    assert watcher.stops
    stored = Memory.model_validate_json(memory.model_dump_json())
    with pytest.raises(UserError) as caught:
        guard(stored, mode="stop").check()
    assert caught.value.field == "rl.guard.peak_contact_force_n" and "\n" not in caught.value.line
    for milder in ({"mode": "warn"}, {"mode": "stop", FORCE: {"factor": 4.0}}, {"mode": "off"}):
        resumed = guard(stored, **milder)
        resumed.check()
        assert not resumed.stops
    assert stored.sft["train"]["push"][FORCE] == 30.0


def test_validation_has_a_reference_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Greedy episodes are smoother than sampled ones; catches one being judged by the other."""
    watcher, sampled, greedy = guard(), [episode(100.0)] * 9, [episode(20.0)] * 9
    watcher.watch("val", greedy, greedy)
    watcher.watch("train", sampled, sampled)
    assert capsys.readouterr().out == ""
    rough = [episode(50.0)] * 9
    watcher.watch("val", rough, rough)
    assert "in validation is 50" in capsys.readouterr().out


def test_a_penalty_is_for_violating_successes_and_for_one_mode() -> None:
    limits = {FORCE: {"absolute": 50.0}, "penalty": 0.25}
    cases = [(episode(60.0), 0.25), (episode(50.0), 0.0), (episode(60.0, success=False), 0.0), (episode(None), 0.0)]
    for record, expected in cases:
        assert guard(mode="penalise", **limits).penalty(record) == expected
        assert {guard(mode=mode, **limits).penalty(record) for mode in ("off", "warn", "stop")} == {0.0}


def test_penalised_shares_are_of_what_was_really_penalised() -> None:
    """Catches: the first iteration, whose own level no factor can refer to, reported as penalised."""
    rows = iterate(guard(mode="penalise", peak_contact_force_n={"factor": 1.5}), 30.0, 30.0, 80.0)
    assert [row["guard/train/penalised"] for row in rows] == [0.0, 0.0, 1.0]


@given(st.lists(st.booleans(), min_size=4, max_size=4), st.lists(st.booleans(), min_size=4, max_size=4))
def test_a_penalty_changes_advantages_and_never_which_groups_are_mixed(
    outcomes: list[bool], violations: list[bool]
) -> None:
    """A success that violates ranks between the other successes and the failures."""
    spec = EpisodeSpec(suite="s", task="t", instruction="", init_seed=0, split="train")
    config = RlConfig(group_size=4)

    def played(penalised: bool) -> Round:
        round_ = Round([spec] * 4, config, needed=1)
        for index, (success, violates) in enumerate(zip(outcomes, violations, strict=True)):
            round_.ended(index, success, 0.5 if penalised and success and violates else 0.0)
        return round_

    plain, penalised = played(False).taken(), played(True).taken()
    assert [group.members for group in plain] == [group.members for group in penalised]
    for before, after in zip(plain, penalised, strict=True):
        rank = [success * (1.0 - 0.5 * violates) for success, violates in zip(outcomes, violations, strict=True)]
        pairs = [(i, j) for i in range(4) for j in range(4)]
        assert all((rank[i] < rank[j]) == (after.advantages[i] < after.advantages[j]) for i, j in pairs)
        assert before.advantages == after.advantages or any(violations)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "on"},
        {"penalty": 1.0},
        {"joint_margin": {"factor": 2.0}},
        {FORCE: {"factor": 0.5}},
        {FORCE: {"factr": 2.0}},
        {"force": {}},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GuardConfig.model_validate(wrong)


def test_every_quantity_of_conduct_has_a_limit() -> None:
    """Catches a new quantity that the guard forgets, which would be a KeyError in the middle of RL."""
    assert set(GuardConfig().limits) == set(Conduct.model_fields) == set(HARMLESS)

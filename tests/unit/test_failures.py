"""Types of failure: each from the numbers that mean it, and which of two wins. No simulator."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gripline.config import EnvConfig
from gripline.envs import make_env
from gripline.envs.motion import jerk_rms
from gripline.failures import FAILURES, MEANINGS, Seen, Thresholds, classify, count_failures, mean_conduct
from gripline.types import Conduct, EpisodeRecord, EpisodeSpec

LIMITS = Thresholds(near=0.1, moved=0.01, lifted=0.03, retreat=0.02, collision_n=100.0)
LATE = Seen(
    nearest_hand=0.02,
    closest_to_goal=0.1,
    final_to_goal=0.1,
    moved=0.05,
    lifted=0.1,
    fell=0.0,
    collision_n=5.0,
    joint_margin=0.1,
)
"""Nothing went wrong but the clock."""
SIGNS = {
    "collision": {"collision_n": 101.0},
    "limit_violation": {"joint_margin": -0.01},
    "never_approached": {"nearest_hand": 0.11},
    "dropped": {"fell": 0.04},
    "moved_away": {"final_to_goal": 0.13},
    "not_moved": {"moved": 0.005},
    "time_limit": {},
}
"""What makes each type of the episode above."""


def test_every_type_has_a_meaning_and_a_sign() -> None:
    assert set(FAILURES) == set(MEANINGS) == set(SIGNS)


@pytest.mark.parametrize("failure", FAILURES)
def test_each_sign_alone_makes_its_type(failure: str) -> None:
    assert classify(replace(LATE, **SIGNS[failure]), LIMITS) == failure


@given(st.sets(st.sampled_from(FAILURES)))
def test_of_several_signs_the_first_in_order_counts(present: set[str]) -> None:
    """Catches a type that hides another one, or whose test reads another one's number."""
    signs = {name: value for failure in present for name, value in SIGNS[failure].items()}
    expected = next((name for name in FAILURES if name in present), "time_limit")
    assert classify(replace(LATE, **signs), LIMITS) == expected


@given(st.data())
def test_a_threshold_itself_is_no_violation(data: st.DataObject) -> None:
    """Catches `>=` where `>` is meant: a joint exactly at its limit, a puck that never was off the table."""
    at = {"collision_n": 100.0, "joint_margin": 0.0, "nearest_hand": 0.1, "fell": 0.03, "final_to_goal": 0.12}
    name = data.draw(st.sampled_from(sorted(at)))
    assert classify(replace(LATE, closest_to_goal=0.1, **{name: at[name]}), LIMITS) == "time_limit"


@given(st.floats(0, 1), st.floats(0, 1))
def test_what_a_suite_does_not_have_is_never_the_reason(nearest: float, final: float) -> None:
    """A toy world has no forces and joints, and a task of reaching has no object to move."""
    seen = Seen(nearest_hand=nearest, closest_to_goal=min(nearest, final), final_to_goal=final)
    assert classify(seen, LIMITS) in {"never_approached", "moved_away", "time_limit"}


def test_lifted_and_put_down_a_little_lower_is_no_drop() -> None:
    assert classify(replace(LATE, lifted=0.2, fell=0.02), LIMITS) == "time_limit"
    assert classify(replace(LATE, lifted=0.02, fell=0.2), LIMITS) == "time_limit"


def record(seed: int = 0, **fields: object) -> EpisodeRecord:
    spec = EpisodeSpec(suite="s", task="t", instruction="", init_seed=seed, split="iid")
    return EpisodeRecord.model_validate(
        {"spec": spec, "success": False, "num_steps": 8 * (1 + seed), "num_chunks": 1} | fields
    )


def test_counts_are_in_order_and_leave_out_what_has_no_type() -> None:
    failures = ["time_limit", "", "dropped", "time_limit", "collision"]
    counts = count_failures([record(failure=failure) for failure in failures])
    assert list(counts.items()) == [("collision", 1), ("dropped", 1), ("time_limit", 2)]


def test_means_are_over_what_was_measured() -> None:
    """Catches a missing measurement counted as 0, and failures counted among the steps to success."""
    records = [
        record(0, success=True, conduct=Conduct(joint_margin=0.1, peak_contact_force_n=10.0)),
        record(1, success=True, conduct=Conduct(joint_margin=0.3)),
        record(9, failure="dropped"),
    ]
    means = mean_conduct(records)
    assert means == {
        "joint_margin": pytest.approx(0.2),
        "peak_contact_force_n": 10.0,
        "steps_to_success": 12.0,
    }
    assert mean_conduct([record(failure="dropped")]) == {}


def test_old_records_load_and_new_ones_survive_the_file() -> None:
    old = record().model_dump(exclude={"failure", "conduct"})
    assert EpisodeRecord.model_validate(old) == record()
    new = record(failure="dropped", conduct=Conduct(jerk_rms_m_s3=1 / 3))
    assert EpisodeRecord.model_validate_json(new.model_dump_json()) == new


@given(st.floats(-50, 50), st.floats(5, 100))
def test_jerk_of_a_cubic_is_its_third_derivative(jerk: float, hertz: float) -> None:
    """x = j t³ / 6 along a diagonal; catches a wrong power of the rate."""
    time_s = np.arange(20) / hertz
    path = np.stack([jerk * time_s**3 / 6] * 2, axis=1) + np.array([3.0, -1.0])
    assert jerk_rms(path, hertz) == pytest.approx(math.sqrt(2) * abs(jerk), rel=1e-3, abs=1e-3 * hertz**3 * 1e-9)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_jerk_of_too_little_or_of_nonsense_is_unknown(bad: float) -> None:
    assert jerk_rms(np.zeros((3, 3)), 80.0) is None
    assert jerk_rms(np.full((9, 3), bad), 80.0) is None


TOY = EnvConfig(suite="toy", tasks=("toy-red", "toy-blue"), image_size_px=16, hold_steps=4, horizon_steps=32)


@pytest.mark.parametrize(
    ("failure", "gains"),
    [
        ("", [1.0] * 8),
        ("never_approached", [-1.0] * 8),
        ("moved_away", [0.5] + [-1.0] * 7),
        ("time_limit", [0.5] + [0.0] * 7),
    ],
)
def test_toy_episodes_have_the_type_of_what_was_done(failure: str, gains: list[float]) -> None:
    """gains: of the expert's actions, chunk by chunk; negative is the other way."""
    env = make_env(TOY)
    env.reset(EpisodeSpec(suite="toy", task="toy-red", instruction="", init_seed=3, split="iid"))
    for gain in gains:
        step = env.step(gain * env.expert_chunk_KA(1))
        if step.success or step.truncated:
            break
        assert step.outcome is None
    assert step.outcome is not None and step.outcome.failure == failure
    assert step.outcome.conduct.jerk_rms_m_s3 is not None and step.outcome.conduct.peak_contact_force_n is None

"""What is read off Meta-World's state: it is right, leaves no trace in the physics, and gives sensible types."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gripline.config import EnvConfig
from gripline.envs import gl, make_env
from gripline.envs.metaworld.observer import ELBOW, ELBOW_RANGE, LIMITS, STRIDE
from gripline.envs.suites import METAWORLD
from gripline.failures import classify
from gripline.types import EpisodeSpec, Outcome

TASKS = ("faucet-open-v3", "drawer-open-v3", "pick-place-v3")
Chunk = Callable[[Any, int], np.ndarray]


@pytest.fixture(scope="module")
def env() -> Any:
    gl.choose_renderer("auto")
    made: Any = make_env(EnvConfig(tasks=tuple(METAWORLD.tasks)))
    made._draw = lambda simulator, look: np.zeros((64, 64, 3), np.uint8)  # nobody looks at these episodes
    yield made
    made.close()


def expert(env: Any, number: int) -> np.ndarray:
    return env.expert_chunk_KA(1)


def play(env: Any, task: str, act: Chunk, *, seed: int = 0, each: Callable[[], None] = lambda: None) -> Outcome:
    env.reset(EpisodeSpec(suite="metaworld", task=task, instruction="", init_seed=seed, split="train"))
    number = 0
    while True:
        step = env.step(act(env, number))
        each()
        number += 1
        if step.outcome is not None:
            return step.outcome


@pytest.mark.parametrize("task", TASKS)
def test_watching_leaves_no_trace_in_the_physics(env: Any, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit, the solver's warm start included: catches a read that computes something anew."""

    def noisy(env: Any, number: int) -> np.ndarray:
        return env.expert_chunk_KA(1) + np.random.default_rng(number).normal(0, 0.4, (1, 4)).astype(np.float32)

    def states() -> list[bytes]:
        found: list[bytes] = []
        play(env, task, noisy, each=lambda: found.append(env._simulator.save().tobytes()))
        return found

    watched = states()
    monkeypatch.setattr(env._simulator.observer, "note", lambda: None)
    assert states() == watched


def measured(simulator: Any) -> tuple[float, float, float]:
    """(contact force in N, smallest joint margin, largest joint speed in rad/s), contact by contact, joint by joint."""
    import mujoco  # not before a renderer is chosen

    model, data = simulator.scene.model, simulator.data
    total_n = 0.0
    for number, contact in enumerate(data.contact):
        roots = [model.body(model.body_rootid[model.geom_bodyid[geom]]).name for geom in contact.geom]
        if roots.count("base") == 1:
            force_6 = np.zeros(6)
            mujoco.mj_contactForce(model, data, number, force_6)
            total_n += force_6[0]
    margins, speeds = [], []
    for name in [f"right_j{number}" for number in range(7)]:
        low, high = ELBOW_RANGE if name == ELBOW else model.joint(name).range
        angle = data.joint(name).qpos[0]
        margins.append(min(angle - low, high - angle) / (high - low))
        speeds.append(abs(data.joint(name).qvel[0]))
    return total_n, min(margins), max(speeds)


@pytest.mark.parametrize("task", TASKS)
def test_figures_are_those_of_the_simulator_s_own_functions(env: Any, task: str) -> None:
    """Catches a wrong row of forces, a wrong joint or body, and steps that are not looked at."""
    seen: list[tuple[float, float, float]] = []
    simulator = env._simulator_of(EpisodeSpec(suite="metaworld", task=task, instruction="", init_seed=0, split="train"))
    plain = simulator.step

    def step(action_A: np.ndarray) -> bool:
        solved = bool(plain(action_A))
        seen.append(measured(simulator))
        return solved

    def act(env: Any, number: int) -> np.ndarray:
        if not number:
            seen.append(measured(simulator))
        simulator.step = plain  # only real steps count, not those in which the expert plans
        chunk_KA = env.expert_chunk_KA(1)
        simulator.step = step
        return chunk_KA

    try:
        conduct = play(env, task, act).conduct
    finally:
        del simulator.step
    last = len(seen) - 1
    looked_at = [found for number, found in enumerate(seen) if number == last or not number % STRIDE]
    forces, margins, speeds = zip(*looked_at, strict=True)
    assert conduct.peak_contact_force_n == pytest.approx(max(forces[1:]), rel=1e-9) and max(forces) > 5
    assert conduct.joint_margin == pytest.approx(min(margins), rel=1e-6)
    assert conduct.peak_joint_speed_rad_s == pytest.approx(max(speeds), rel=1e-9)


def backwards(turn: int) -> Chunk:
    """The expert, and from chunk `turn` on its opposite."""

    def act(env: Any, number: int) -> np.ndarray:
        chunk_KA = env.expert_chunk_KA(1)
        return chunk_KA if number < turn else -chunk_KA

    return act


def still(env: Any, number: int) -> np.ndarray:
    return np.zeros((1, 4), np.float32)


def gives_up(env: Any, number: int) -> np.ndarray:
    """The expert for five chunks, then nothing: the gripper opens."""
    return env.expert_chunk_KA(1) if number < 5 else still(env, number)


@pytest.mark.parametrize(
    ("failure", "task", "act"),
    [
        ("", "coffee-button-v3", expert),
        ("never_approached", "faucet-open-v3", still),
        ("not_moved", "drawer-open-v3", gives_up),
        ("dropped", "pick-place-v3", gives_up),
        ("moved_away", "reach-v3", backwards(5)),
        ("collision", "faucet-open-v3", backwards(5)),
        ("time_limit", "door-open-v3", gives_up),
    ],
)
def test_episodes_have_the_type_that_one_would_give_them(env: Any, failure: str, task: str, act: Chunk) -> None:
    """Each was looked at in pictures; catches an object, a goal or a height taken from the wrong place."""
    assert play(env, task, act).failure == failure


@pytest.mark.parametrize("task", sorted(METAWORLD.tasks))
def test_the_expert_s_way_is_no_collision_and_comes_near(env: Any, task: str) -> None:
    """Catches thresholds that a task done as it should be violates: its failures would all be of one type."""
    conduct = play(env, task, expert).conduct
    observer = env._simulator.observer
    *points, palm_S3, _, _ = (np.array(observer._states)[:, columns] for columns in observer._columns)
    assert classify(observer._seen(points, palm_S3, conduct), LIMITS) in {"time_limit", "not_moved"}
    assert conduct.joint_margin > 0.05 and conduct.peak_joint_speed_rad_s < 10 and conduct.jerk_rms_m_s3 > 1

"""The adapter's episodes are the stock environment's, step for step: lean stepping saves time and changes nothing."""

from typing import Any

import numpy as np
import pytest

from gripline.config import EnvConfig
from gripline.envs import make_env
from gripline.envs.gl import choose_renderer
from gripline.envs.suites import METAWORLD, task_info
from gripline.types import EpisodeSpec, Perturbation

HORIZON_STEPS = 112


@pytest.fixture(scope="module", autouse=True)
def renderer() -> None:
    choose_renderer("auto")


def stock_environment(task: str) -> Any:
    """An environment of the package itself, with a model of its own; nothing of gripline in it."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    env = ALL_V3_ENVIRONMENTS[task]()
    env._set_task_called = env._freeze_rand_vec = True
    env._partially_observable = False
    del env.sawyer_observation_space
    return env


def compare(task: str, seeds: range) -> int:
    """Run episodes of several kinds of actions in both and return the number of successes; all states must be equal."""
    from gripline.envs.metaworld.simulator import Simulator

    lean, stock = Simulator(task, task_info("metaworld", task), lean=True), stock_environment(task)
    successes = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        lean.reset(seed, "outside" if seed % 5 == 4 else "inside", Perturbation())
        stock._last_rand_vec = lean.env._last_rand_vec.copy()
        stock.reset()
        noise, hold_steps = ((0.0, 1), (0.0, 8), (0.5, 8), (5.0, 8))[seed % 4]
        for number in range(HORIZON_STEPS):
            assert np.array_equal(lean.data.qpos, stock.data.qpos), (task, seed, number)
            assert np.array_equal(lean.data.qvel, stock.data.qvel), (task, seed, number)
            if number % hold_steps == 0:
                noisy_A = lean.expert_action_A() + rng.normal(0, noise, 4)
                action_A = np.clip(noisy_A, -1, 1).astype(np.float32)
            success = lean.step(action_A)
            assert success == bool(stock.step(action_A)[4]["success"]), (task, seed, number)
            if success:
                successes += 1
                break
    return successes


@pytest.mark.parametrize("task", sorted(METAWORLD.tasks))
def test_lean_states_and_success_equal_the_stock_environment(task: str) -> None:
    """Catches a skipped part of the stock step that mattered, and a success threshold copied wrongly."""
    assert compare(task, range(5)) >= 2, "too few successes to compare"


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(METAWORLD.tasks))
def test_lean_equals_stock_on_many_episodes(task: str) -> None:
    """325 episodes over all tasks: rare differences, such as contacts that amplify the last bit."""
    assert compare(task, range(100, 125)) >= 6


def test_lean_and_stock_adapters_give_the_same_chunks() -> None:
    """Catches success or the horizon being counted differently in the two ways of stepping."""
    tasks = ("faucet-open-v3", "drawer-open-v3")
    envs = [make_env(EnvConfig(tasks=tasks, lean=lean)) for lean in (True, False)]
    for task in tasks:
        for seed in range(3):
            spec = EpisodeSpec(suite="metaworld", task=task, instruction="", init_seed=seed, split="train")
            rng = np.random.default_rng(seed)
            first, second = (env.reset(spec) for env in envs)
            assert np.array_equal(first.images_NHWC, second.images_NHWC)
            while True:
                chunk_KA = envs[0].expert_chunk_KA(1) + rng.normal(0, 0.2 * seed, (1, 4)).astype(np.float32)
                lean, stock = (env.step(chunk_KA) for env in envs)
                assert (lean.success, lean.truncated, lean.num_steps) == (
                    stock.success,
                    stock.truncated,
                    stock.num_steps,
                )
                assert np.array_equal(lean.observation.images_NHWC, stock.observation.images_NHWC)
                assert np.array_equal(lean.observation.proprio_P, stock.observation.proprio_P)
                if lean.success or lean.truncated:
                    break
    for env in envs:
        env.close()

"""The simulators and policies of the stages, as actors build them."""

import os
from pathlib import Path

import numpy as np
import pytest
from rollout.fakes import ENV, episodes

from gripline.config import EnvConfig, PolicyConfig
from gripline.envs.suites import env_spec
from gripline.errors import UserError
from gripline.policies import build_policy, save_policy
from gripline.policies.vla import VLA
from gripline.rollout.standard import make_env_with, make_served_policy


def policy(seed: int) -> VLA:
    return build_policy(PolicyConfig(), env_spec(ENV), instructions=["touch it"], seed=seed)


def test_a_served_policy_acts_like_the_one_whose_weights_it_loads(tmp_path: Path) -> None:
    """Catches: weights that stay behind, or are shared with the sender instead of copied."""
    for seed in (1, 2):
        save_policy(tmp_path / str(seed), policy(seed), env=ENV, stage="sft")
    first, second = (make_served_policy(str(tmp_path / str(seed))) for seed in (1, 2))
    env = make_env_with(ENV, {})
    observations = [env.reset(spec) for spec in episodes(5)]

    def logprobs_BKA() -> np.ndarray:
        return first.act(observations, noise_keys=None, temperature=1.0).logprobs_BKA

    wanted = second.act(observations, noise_keys=None, temperature=1.0).logprobs_BKA
    assert not np.array_equal(logprobs_BKA(), wanted)
    weights = {name: value.numpy().copy() for name, value in policy(2).state_dict().items()}
    for value in weights.values():
        value.flags.writeable = False  # as they come out of Ray's object store
    first.load_weights(weights)
    np.testing.assert_array_equal(logprobs_BKA(), wanted)
    assert max(first.batch_sizes) == 32 and min(first.batch_sizes) >= 4


def test_a_missing_checkpoint_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: does not exist"):
        make_served_policy(str(tmp_path / "nowhere"))


def test_the_renderer_is_set_before_the_simulator_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    make_env_with(ENV, {"MUJOCO_GL": "osmesa"})
    assert os.environ["MUJOCO_GL"] == "osmesa"


def test_on_another_machine_a_worker_settles_its_renderer_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pod's environment names is taken as tried; the driver's machine may have no renderer at all."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    make_env_with(EnvConfig(tasks=("reach-v3",)), None)
    assert os.environ["MUJOCO_GL"] == "egl"

"""Meta-World's looks, labels, renderers and registry entries."""

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gripline.config import EnvConfig
from gripline.envs import gl, make_env
from gripline.envs.demonstration import held_actions_TKA
from gripline.envs.suites import METAWORLD, task_info
from gripline.errors import UserError
from gripline.types import EpisodeSpec, Perturbation


@pytest.fixture(scope="module", autouse=True)
def renderer() -> None:
    gl.choose_renderer("auto")


def picture(task: str, seed: int = 0, **perturbation: object) -> np.ndarray:
    """The first image of an episode, float (64, 64, 3)."""
    look = Perturbation.model_validate(perturbation)
    spec = EpisodeSpec(suite="metaworld", task=task, instruction="", init_seed=seed, split="train", perturbation=look)
    env = make_env(EnvConfig(tasks=(task,)))
    image = env.reset(spec).images_NHWC[0].astype(float)
    env.close()
    return image


def test_every_task_has_an_expert_and_a_success_test() -> None:
    """Catches a task that is listed and cannot run."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    from gripline.envs.metaworld.success import GOALS

    assert set(METAWORLD.tasks) == set(GOALS)
    assert set(METAWORLD.tasks) <= set(ALL_V3_ENVIRONMENTS) & set(ENV_POLICY_MAP)


def test_the_camera_moves_in_its_own_frame() -> None:
    """Catches axes swapped or not orthogonal, and a camera that loses its aim."""
    from gripline.envs.metaworld.rendering import AIM_M, camera_position, policy_camera

    start = camera_position((0, 0, 0))
    right, up, back = (camera_position(tuple(np.eye(3)[axis])) - start for axis in range(3))
    assert np.allclose(np.stack([right, up, back]) @ np.stack([right, up, back]).T, np.eye(3))
    assert np.allclose(np.cross(right, up), back)
    assert up[2] > 0.5 and abs(right[2]) < 1e-9
    assert np.allclose(back, (start - AIM_M) / np.linalg.norm(start - AIM_M))
    moved = policy_camera((0.06, 0.03, -0.02))
    assert np.allclose(moved.lookat, AIM_M)
    azimuth, elevation = np.radians([moved.azimuth, moved.elevation])
    forward = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    assert np.allclose(AIM_M - moved.distance * forward, camera_position((0.06, 0.03, -0.02)))


def test_light_and_colours_do_what_they_say() -> None:
    """Catches a gain on one lamp only, and colours that reach plain but not textured surfaces."""
    plain, dark = picture("drawer-open-v3"), picture("drawer-open-v3", light_gain=0.5)
    lit = plain[16:] > 20  # the rows below the background, which is no surface
    ratio = dark[16:][lit] / plain[16:][lit]
    assert ratio.min() > 0.4 and ratio.max() < 0.75  # above 0.5 where the full light was more than OpenGL can show
    assert (ratio < 0.55).mean() > 0.1
    tinted = picture("drawer-open-v3", colour_gain=(0.7, 1.0, 1.0))
    table = np.s_[50:, :32]
    assert 0.68 < tinted[table][..., 0].mean() / plain[table][..., 0].mean() < 0.9
    assert np.allclose(tinted[table][..., 1:], plain[table][..., 1:], atol=2)


def test_the_object_is_where_the_seed_puts_it() -> None:
    """Catches a picture drawn before the object was moved: the first image would show the previous episode's place."""
    env = make_env(EnvConfig(tasks=("faucet-open-v3",)))
    columns = []
    for region in ("inside", "outside"):
        for seed in range(12):
            spec = EpisodeSpec(
                suite="metaworld", task="faucet-open-v3", instruction="", init_seed=seed, split="train", region=region
            )
            image = env.reset(spec).images_NHWC[0].astype(int)
            red = (image[..., 0] > 90) & (image[..., 1] < 40)
            x_m = env._simulator.env.obj_init_pos[0]  # type: ignore[attr-defined]
            assert red.sum() >= 8, "the faucet's handle is too small or out of sight"
            assert (abs(x_m) <= 0.1) == (region == "inside") and abs(x_m) <= 0.15
            columns.append((x_m, np.nonzero(red)[1].mean()))
    env.close()
    assert np.corrcoef(np.array(columns).T)[0, 1] > 0.95


def test_people_see_the_whole_robot_in_the_episode_s_light() -> None:
    """Catches hidden links that stay hidden in videos, and a picture in the light that another environment left."""
    tasks = ("faucet-open-v3", "faucet-close-v3")
    first, second = (make_env(EnvConfig(tasks=(task,))) for task in tasks)
    bright = EpisodeSpec(suite="metaworld", task=tasks[0], instruction="", init_seed=0, split="train")
    dark = bright.model_copy(update={"task": tasks[1], "perturbation": Perturbation(light_gain=0.4)})
    first.reset(bright)
    alone = first.render_for_people(256).astype(int)
    second.reset(dark)
    assert np.array_equal(first.render_for_people(256), alone)
    assert second.render_for_people(256).mean() < 0.7 * alone.mean()
    arm = (alone[..., 0] > 60) & (alone[..., 1] < 0.4 * alone[..., 0])
    assert arm.mean() > 0.04, "the red arm is not to be seen"
    assert not arm.mean() > 0.5
    for env in (first, second):
        env.close()


def test_only_tasks_without_another_sign_show_their_marker() -> None:
    """Catches a marker of the goal that tells faucets apart, and a target that nobody can see."""
    assert not task_info("metaworld", "faucet-open-v3").marker
    for task in ("reach-v3", "push-v3", "pick-place-v3"):
        env = make_env(EnvConfig(tasks=(task,)))
        spec = EpisodeSpec(suite="metaworld", task=task, instruction="", init_seed=1, split="train")
        shown = env.reset(spec).images_NHWC.copy()
        simulator = env._simulator  # type: ignore[attr-defined]
        model = simulator.scene.model
        model.site_pos[model.site("goal").id] += (0.0, -0.1, 0.0)
        simulator.refresh()
        assert (simulator.scene.draw(simulator.data, 64) != shown[0]).any(), task
        env.close()


def test_an_initial_state_is_remembered_exactly() -> None:
    """Catches a remembered reset that differs from the first: members of a group would start from different states."""
    from gripline.envs.metaworld import simulator as module

    for task in ("handle-press-v3", "push-v3", "faucet-close-v3"):
        simulator = module.Simulator(task, task_info("metaworld", task), lean=True)
        module._starts.clear()
        states = []
        for seed in (3, 4, 3, 4):
            simulator.reset(seed, "inside", Perturbation())
            states.append(np.concatenate([simulator.save(), simulator.data.xpos.ravel()]))
        assert np.array_equal(states[0], states[2]) and np.array_equal(states[1], states[3])
        assert not np.array_equal(states[0], states[1])
        simulator.close()


def test_labels_are_means_over_the_steps_that_an_action_is_held() -> None:
    """Worked by hand: five control steps, held two each."""
    expert_SA = np.array([[0.0], [2.0], [4.0], [6.0], [9.0]], np.float32)
    labels = held_actions_TKA(expert_SA, [0, 3], num_actions=3, hold_steps=2)
    assert labels[..., 0].tolist() == [[1.0, 5.0, 9.0], [7.5, 7.5, 7.5]]


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30), st.integers(1, 4), st.integers(1, 9), st.data())
def test_labels_lie_within_what_the_expert_did(
    actions: list[float], num_actions: int, hold_steps: int, data: st.DataObject
) -> None:
    """Catches windows that reach outside of the episode, and an undefined action at its end."""
    frames = data.draw(st.lists(st.integers(0, len(actions) - 1), min_size=1, max_size=4))
    labels = held_actions_TKA(np.array(actions, np.float32)[:, None], frames, num_actions, hold_steps)
    assert labels.shape == (len(frames), num_actions, 1)
    assert (labels >= min(actions) - 1e-6).all() and (labels <= max(actions) + 1e-6).all()


def test_a_machine_without_a_renderer_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a traceback out of OpenGL where one line would do."""
    monkeypatch.delenv(gl.VARIABLE, raising=False)
    monkeypatch.setattr(gl, "_PROBE", "raise OSError('no such library')")
    with pytest.raises(UserError, match=r"egl: OSError: no such library; osmesa.*apt-get install"):
        gl.choose_renderer("auto")
    assert set(gl.probe_renderers()) == {"egl", "osmesa"}


def test_the_makefile_s_check_says_which_renderer_and_nothing_else() -> None:
    """Catches: warnings of the module machinery at the head of `make demo`."""
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    line = next(line for line in makefile.splitlines() if line.startswith("DRAWS := "))
    command = [sys.executable, *shlex.split(line)[3:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("renderer: ")


def test_a_renderer_is_probed_once_and_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a probe in every worker, and a preference that overrides what was asked for."""
    monkeypatch.setenv(gl.VARIABLE, "osmesa")
    monkeypatch.setattr(gl, "_PROBE", "raise OSError('probed again')")
    assert gl.choose_renderer("auto") == "osmesa" == gl.choose_renderer("osmesa")
    with pytest.raises(UserError, match="probed again"):
        gl.choose_renderer("egl")
    monkeypatch.setattr(gl, "_PROBE", "")
    assert gl.choose_renderer("egl") == "egl"

"""What every environment of the registry must do, whatever simulator is behind it."""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import get_args

import numpy as np
import pytest

from gripline.axes import draw_changes
from gripline.config import EnvConfig
from gripline.envs import make_env
from gripline.envs.suites import SUITES, Box, env_spec, task_info
from gripline.errors import UserError
from gripline.failures import FAILURES
from gripline.splits_config import Axis, OodConfig
from gripline.types import Env, EpisodeSpec, Observation, Outcome, Perturbation

NUM_EPISODES = 5
"""Per task, where success rates are compared."""


def chosen_tasks(suite: str) -> tuple[str, ...]:
    """Two tasks that share a scene, and one of another scene if there is one."""
    tasks = SUITES[suite].tasks
    scenes = [info.scene for info in tasks.values()]
    shared = [task for task, info in tasks.items() if scenes.count(info.scene) > 1]
    others = [task for task in tasks if task not in shared]
    return tuple([*shared[:2], *others[:1]])


def config_of(suite: str) -> EnvConfig:
    return EnvConfig(suite=suite, tasks=chosen_tasks(suite), image_size_px=48, hold_steps=8, horizon_steps=116)


def spec_of(suite: str, task: str, seed: int = 0, **changes: object) -> EpisodeSpec:
    fields = {"suite": suite, "task": task, "instruction": task_info(suite, task).instruction}
    return EpisodeSpec.model_validate(fields | {"init_seed": seed, "split": "train"} | changes)


def same(first: Observation, second: Observation) -> bool:
    return np.array_equal(first.images_NHWC, second.images_NHWC) and np.array_equal(first.proprio_P, second.proprio_P)


def random_chunk(env: Env, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(env.spec.action_low_A, env.spec.action_high_A, (1, env.spec.action_dim)).astype(np.float32)


def run_random(env: Env, spec: EpisodeSpec, num_chunks: int) -> list[Observation]:
    """The observations of an episode with actions that depend on nothing but their number."""
    rng = np.random.default_rng(3)
    observations = [env.reset(spec)]
    for _ in range(num_chunks):
        step = env.step(random_chunk(env, rng))
        observations.append(step.observation)
        if step.success or step.truncated:
            break
    return observations


def run_expert(env: Env, spec: EpisodeSpec) -> list[Observation]:
    """The observations of an episode in which the expert acts, which touches the object."""
    observations = [env.reset(spec)]
    while True:
        step = env.step(env.expert_chunk_KA(1))
        observations.append(step.observation)
        if step.success or step.truncated:
            return observations


def run_to_end(env: Env, spec: EpisodeSpec, *, expert: bool) -> tuple[bool, bool, list[int]]:
    """(success, truncated, control steps of each chunk) of a whole episode."""
    rng = np.random.default_rng(spec.init_seed)
    env.reset(spec)
    num_steps = []
    while True:
        step = env.step(env.expert_chunk_KA(1) if expert else random_chunk(env, rng))
        num_steps.append(step.num_steps)
        if step.success or step.truncated:
            return step.success, step.truncated, num_steps


@pytest.fixture(scope="module", params=sorted(SUITES))
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def env(suite: str) -> Iterator[Env]:
    made = make_env(config_of(suite))
    yield made
    made.close()


@pytest.fixture(scope="module")
def other_env(suite: str) -> Iterator[Env]:
    """A second one in the same process, as the slots of a rollout worker are."""
    made = make_env(config_of(suite))
    yield made
    made.close()


def test_spec_is_known_without_the_simulator_and_fits_the_observations(env: Env, suite: str) -> None:
    """Catches a policy built for other shapes than the environment delivers."""
    assert env.spec == env_spec(config_of(suite))
    observation = env.reset(spec_of(suite, env.spec.tasks[0]))
    size = env.spec.image_size_px
    assert observation.images_NHWC.shape == (len(env.spec.cameras), size, size, 3)
    assert observation.images_NHWC.dtype == np.uint8 and observation.images_NHWC.flags.c_contiguous
    assert observation.proprio_P.shape == (env.spec.proprio_dim,) and observation.proprio_P.dtype == np.float32
    assert len(env.spec.action_low_A) == len(env.spec.action_high_A) == env.spec.action_dim
    assert observation.images_NHWC.std() > 5, "an empty picture"


def test_the_policy_reads_the_spec_s_instruction(env: Env, suite: str) -> None:
    """Catches the task's own text leaking into ablations that change or remove it."""
    observation = env.reset(spec_of(suite, env.spec.tasks[0], instruction="something else"))
    assert observation.instruction == "something else"


def test_same_spec_same_episode_whatever_came_before(env: Env, other_env: Env, suite: str) -> None:
    """Catches state that survives a reset, and differences between instances."""
    for task in env.spec.tasks:
        spec = spec_of(suite, task, seed=11)
        first = run_random(env, spec, 4)
        for before in env.spec.tasks:
            run_random(other_env, spec_of(suite, before, seed=5, region="outside"), 3)
        second = run_random(other_env, spec, 4)
        again = run_random(other_env, spec, 4)
        assert all(map(same, first, second)) and all(map(same, first, again)), task


def test_two_instances_may_take_turns(env: Env, other_env: Env, suite: str) -> None:
    """Catches instances that share a model, a look or a buffer: slots of one worker interleave exactly like this."""
    spec = spec_of(suite, env.spec.tasks[0], seed=1)
    disturbing = spec_of(suite, env.spec.tasks[1], 2, perturbation=everything(suite))
    alone = run_random(env, spec, 5)
    kept = [observation.images_NHWC.copy() for observation in alone]
    rng = np.random.default_rng(3)
    interleaved = [env.reset(spec)]
    for _ in alone[1:]:
        run_random(other_env, disturbing, 1)
        interleaved.append(env.step(random_chunk(env, rng)).observation)
    assert all(map(same, alone, interleaved))
    assert all(np.array_equal(before, after.images_NHWC) for before, after in zip(kept, alone, strict=True))


def test_other_seeds_are_other_states(env: Env, suite: str) -> None:
    """Catches a seed that is ignored: every group would train on one and the same state."""
    for task in env.spec.tasks:
        for region in ("inside", "outside"):
            pictures = [env.reset(spec_of(suite, task, seed, region=region)).images_NHWC.tobytes() for seed in range(4)]
            assert len(set(pictures)) > 2, (task, region)


def test_tasks_of_one_scene_look_the_same(env: Env, suite: str) -> None:
    """Catches a scene that gives the task away, so that a policy may succeed without reading."""
    first, second = env.spec.tasks[:2]
    assert task_info(suite, first).scene == task_info(suite, second).scene
    for seed in range(4):
        for region in ("inside", "outside"):
            one, two = (env.reset(spec_of(suite, task, seed, region=region)) for task in (first, second))
            assert same(one, two), (seed, region)


OTHER_CHANGES = ("position", "paraphrase", "unseen_task")
"""Axes that change something else than the perturbation."""
SEEN_ONLY = ("camera", "light", "colour", "fov", "texture", "distractors")
"""Axes that change the picture and nothing else."""


def on_axis(axis: Axis, suite: str, task: str, index: int = 0) -> Perturbation:
    changes = draw_changes(axis, OodConfig(), suite, task, index, np.random.default_rng(index))
    return Perturbation.model_validate(changes["perturbation"])


def combined(axes: Iterable[Axis], suite: str, task: str, index: int = 0) -> Perturbation:
    """Several axes at once."""
    parts = [on_axis(axis, suite, task, index).model_dump(exclude_defaults=True) for axis in axes]
    return Perturbation.model_validate({name: value for part in parts for name, value in part.items()})


def everything(suite: str) -> Perturbation:
    """All of the suite's axes at once."""
    axes = [axis for axis in SUITES[suite].axes if axis not in OTHER_CHANGES]
    return combined(axes, suite, next(iter(SUITES[suite].tasks)))


@pytest.mark.parametrize("axis", SEEN_ONLY)
def test_a_look_changes_the_picture_only_and_is_undone(env: Env, suite: str, axis: Axis) -> None:
    """Catches a shift that does nothing, one that changes the physics, and one that outlives its episode."""
    for task in env.spec.tasks:
        plain = run_random(env, spec_of(suite, task), 3)
        for index in range(2):
            shifted = run_random(env, spec_of(suite, task, perturbation=on_axis(axis, suite, task, index)), 3)
            for before, after in zip(plain, shifted, strict=True):
                change = np.abs(before.images_NHWC.astype(int) - after.images_NHWC)
                assert change.mean() > 0.3 and change.max() > 30, (task, axis, index)
                assert np.array_equal(before.proprio_P, after.proprio_P)
        assert all(map(same, plain, run_random(env, spec_of(suite, task), 3)))


def test_the_suite_s_axes_are_those_that_change_something(env: Env, suite: str) -> None:
    """Catches an axis that is offered and does nothing: its episodes would be IID ones under another name."""
    task = env.spec.tasks[0]

    env.reset(spec_of(suite, task))
    actions = [env.expert_chunk_KA(1)]  # the expert's touch the object
    while not env.step(actions[-1]).success:
        actions.append(env.expert_chunk_KA(1))

    def course(perturbation: Perturbation) -> Iterator[tuple[bytes, bool]]:
        """What is seen, and whether that was the end."""
        yield env.reset(spec_of(suite, task, perturbation=perturbation)).images_NHWC.tobytes(), False
        for chunk_KA in actions:
            step = env.step(chunk_KA)
            yield step.observation.images_NHWC.tobytes(), step.success
            if step.success:
                return

    plain = list(course(Perturbation()))
    for axis in get_args(Axis):
        if axis not in OTHER_CHANGES:
            other = course(on_axis(axis, suite, task))
            differs = any(before != after for before, after in zip(plain, other, strict=False))
            assert differs == (axis in SUITES[suite].axes), axis


def test_the_hand_starts_elsewhere(env: Env, suite: str) -> None:
    """Catches a hand that is back at its usual place when the episode begins, or elsewhere the second time."""
    for task in env.spec.tasks:
        usual = env.reset(spec_of(suite, task)).proprio_P
        for index in range(4):
            look = on_axis("robot", suite, task, index)
            first = env.reset(spec_of(suite, task, perturbation=look))
            again = env.reset(spec_of(suite, task, perturbation=look))
            assert same(first, again)
            assert np.linalg.norm(first.proprio_P - usual) > 0.04, (task, look.hand_offset_m)


def test_the_expert_still_succeeds_where_hand_and_physics_differ(env: Env, suite: str) -> None:
    """Catches a shift that makes a task impossible: all policies would score zero on it."""
    axes = [axis for axis in ("robot", "physics") if axis in SUITES[suite].axes]
    for task in env.spec.tasks:
        looks = [combined(axes, suite, task, index) for index in range(NUM_EPISODES)]
        specs = [spec_of(suite, task, seed, perturbation=look) for seed, look in enumerate(looks)]
        assert sum(run_to_end(env, spec, expert=True)[0] for spec in specs) >= 0.8 * NUM_EPISODES, task


def test_all_perturbations_together_leave_nothing_behind(env: Env, suite: str) -> None:
    """Catches a look, a weight or a place that outlives its episode: no environment may remember one."""
    tasks = env.spec.tasks
    perturbed = {task: run_expert(env, spec_of(suite, task, 3, perturbation=everything(suite))) for task in tasks}
    fresh = make_env(config_of(suite))
    for task in tasks:
        plain = run_expert(env, spec_of(suite, task, seed=3))
        untouched = run_expert(fresh, spec_of(suite, task, seed=3))
        assert len(plain) == len(untouched) and all(map(same, plain, untouched)), task
        assert not same(perturbed[task][0], plain[0])
    for task in tasks:
        again = run_expert(fresh, spec_of(suite, task, 3, perturbation=everything(suite)))
        assert len(again) == len(perturbed[task]) and all(map(same, again, perturbed[task])), task
    fresh.close()


def test_tasks_that_are_not_configured_may_be_tested(env: Env, suite: str) -> None:
    """Catches a suite in which axis 'unseen_task' cannot be run."""
    other = next(task for task in SUITES[suite].tasks if task not in env.spec.tasks)
    alone = make_env(config_of(suite).model_copy(update={"tasks": (other,)}))
    here, there = (run_random(one, spec_of(suite, other), 2) for one in (env, alone))
    assert len(here) == len(there) and all(map(same, here, there))
    alone.close()


def test_blank_image_is_black_and_nothing_else_changes(env: Env, suite: str) -> None:
    """Catches an ablation that still shows something, or that changes the episode itself."""
    task = env.spec.tasks[0]
    plain = run_random(env, spec_of(suite, task), 3)
    blank = run_random(env, spec_of(suite, task, perturbation=Perturbation(blank_image=True)), 3)
    assert not any(observation.images_NHWC.any() for observation in blank)
    assert all(np.array_equal(a.proprio_P, b.proprio_P) for a, b in zip(plain, blank, strict=True))


def test_an_episode_ends_at_the_horizon_exactly(env: Env, suite: str) -> None:
    """Catches a horizon counted in chunks: 116 is no multiple of the 8 steps that an action is held."""
    still = np.zeros((1, env.spec.action_dim), np.float32)
    for task in env.spec.tasks:
        env.reset(spec_of(suite, task))
        steps = [env.step(still)]
        while not (steps[-1].success or steps[-1].truncated):
            steps.append(env.step(still))
        assert steps[-1].truncated and not steps[-1].success
        assert [step.num_steps for step in steps] == [8] * 14 + [4]


def test_a_chunk_of_several_actions_is_the_same_as_one_by_one(env: Env, suite: str) -> None:
    """Catches chunks that drop or reorder actions."""
    rng = np.random.default_rng(0)
    actions_KA = np.concatenate([random_chunk(env, rng) for _ in range(3)])
    env.reset(spec_of(suite, env.spec.tasks[0]))
    together = env.step(actions_KA)
    env.reset(spec_of(suite, env.spec.tasks[0]))
    apart = [env.step(action_A[None]) for action_A in actions_KA]
    assert same(together.observation, apart[-1].observation)
    assert together.num_steps == sum(step.num_steps for step in apart)


def test_actions_are_clipped_to_the_bounds(env: Env, suite: str) -> None:
    """Catches a policy that moves faster than the robot can by asking for more."""
    task, high_A = env.spec.tasks[0], np.array([env.spec.action_high_A], np.float32)
    env.reset(spec_of(suite, task))
    allowed = env.step(high_A)
    env.reset(spec_of(suite, task))
    assert same(env.step(high_A * 10).observation, allowed.observation)


def test_nothing_is_stepped_after_the_end(suite: str) -> None:
    """Catches an adapter that goes on after success: dead steps, and training on them."""
    fresh = make_env(config_of(suite))
    still = np.zeros((1, fresh.spec.action_dim), np.float32)
    with pytest.raises(RuntimeError, match="reset"):
        fresh.step(still)
    success, _, _ = run_to_end(fresh, spec_of(suite, fresh.spec.tasks[0]), expert=True)
    assert success
    with pytest.raises(RuntimeError, match="reset"):
        fresh.step(still)
    fresh.close()
    fresh.close()


def test_the_expert_succeeds_through_held_actions_and_chance_does_not(env: Env, suite: str) -> None:
    """Catches labels in wrong units or order, success that is never or always reported, and an unsolvable region."""
    for task in env.spec.tasks:
        for region in ("inside", "outside"):
            specs = [spec_of(suite, task, seed, region=region) for seed in range(NUM_EPISODES)]
            ends = [run_to_end(env, spec, expert=True) for spec in specs]
            assert sum(success for success, _, _ in ends) >= 0.8 * NUM_EPISODES, (task, region)
            assert all(success != truncated for success, truncated, _ in ends)
            assert all(sum(num_steps) <= env.spec.horizon_steps for _, _, num_steps in ends)
        by_chance = [run_to_end(env, spec_of(suite, task, seed), expert=False)[0] for seed in range(NUM_EPISODES)]
        assert sum(by_chance) <= 0.4 * NUM_EPISODES, task


def test_the_end_of_an_episode_says_how_it_went_and_says_it_again(env: Env, other_env: Env, suite: str) -> None:
    """Catches an outcome in the middle, a failure of a success, and figures that depend on what ran before."""

    def outcomes(made: Env, spec: EpisodeSpec, chunks: list[np.ndarray]) -> list[Outcome | None]:
        made.reset(spec)
        steps = [made.step(chunk_KA) for chunk_KA in chunks]
        assert all((step.outcome is not None) == (step.success or step.truncated) for step in steps)
        return [step.outcome for step in steps]

    for task in env.spec.tasks:
        for seed, expert in ((1, True), (2, False)):
            spec, rng = spec_of(suite, task, seed), np.random.default_rng(seed)
            env.reset(spec)
            chunks = []
            while True:
                chunks.append(env.expert_chunk_KA(1) if expert else random_chunk(env, rng))
                step = env.step(chunks[-1])
                if step.success or step.truncated:
                    break
            outcome = step.outcome
            assert outcome is not None and outcome.failure in ("", *FAILURES)
            assert (outcome.failure == "") == step.success
            run_random(other_env, spec_of(suite, task, seed=9), 3)
            assert outcomes(other_env, spec, chunks)[-1] == outcomes(env, spec, chunks)[-1] == outcome


def test_asking_the_expert_does_not_change_the_episode(env: Env, suite: str) -> None:
    """Catches a look ahead that is not taken back."""
    spec = spec_of(suite, env.spec.tasks[0], seed=2)
    alone = run_random(env, spec, 3)
    rng = np.random.default_rng(3)
    env.reset(spec)
    for observation in alone[1:]:
        chunk_KA = env.expert_chunk_KA(2)
        assert chunk_KA.shape == (2, env.spec.action_dim) and chunk_KA.dtype == np.float32
        assert (chunk_KA >= env.spec.action_low_A).all() and (chunk_KA <= env.spec.action_high_A).all()
        assert same(env.step(random_chunk(env, rng)).observation, observation)


def test_demonstrations_show_every_frame_in_every_view(env: Env, suite: str) -> None:
    """Catches views that show different moments, labels of other frames, and looks that outlive the recording."""
    views = [Perturbation(), Perturbation(light_gain=0.5), Perturbation(camera_offset_m=(0.05, 0.0, 0.0))]
    for task in env.spec.tasks:
        first = env.reset(spec_of(suite, task, seed=7))
        demo = env.expert_rollout(spec_of(suite, task, seed=7), num_actions=2, frame_stride=2, views=views)
        frames, size = len(demo.proprio_TP), env.spec.image_size_px
        assert demo.success and 0 < demo.num_steps <= env.spec.horizon_steps
        assert demo.images_TVNHWC.shape == (frames, 3, len(env.spec.cameras), size, size, 3)
        assert demo.images_TVNHWC.dtype == np.uint8
        assert demo.actions_TKA.shape == (frames, 2, env.spec.action_dim) and demo.actions_TKA.dtype == np.float32
        assert demo.proprio_TP.shape == (frames, env.spec.proprio_dim) and demo.proprio_TP.dtype == np.float32
        assert np.abs(demo.actions_TKA).max() <= 1 and np.abs(demo.actions_TKA).max() > 0.1
        assert np.array_equal(demo.images_TVNHWC[0, 0], first.images_NHWC)
        assert demo.images_TVNHWC[:, 1].mean() < 0.8 * demo.images_TVNHWC[:, 0].mean()
        assert (demo.images_TVNHWC[:, 2] != demo.images_TVNHWC[:, 0]).any()
        assert same(env.reset(spec_of(suite, task, seed=7)), first)


def test_pictures_for_people_do_not_touch_the_episode(env: Env, suite: str) -> None:
    """Catches a replay that differs from the episode it shows."""
    spec = spec_of(suite, env.spec.tasks[-1], seed=4)
    alone = run_random(env, spec, 3)
    rng = np.random.default_rng(3)
    watched = [env.reset(spec)]
    for _ in range(3):
        picture = env.render_for_people(256)
        assert picture.shape == (256, 256, 3) and picture.dtype == np.uint8 and picture.std() > 5
        watched.append(env.step(random_chunk(env, rng)).observation)
    assert all(map(same, alone, watched))


def test_regions_do_not_overlap(suite: str) -> None:
    """Catches 'unseen' positions that training has seen."""

    def touch(one: Box, two: Box) -> bool:
        return all(a_low <= b_high and b_low <= a_high for a_low, a_high, b_low, b_high in zip(*one, *two, strict=True))

    for task, info in SUITES[suite].tasks.items():
        for box in (info.inside, *info.outside):
            assert all(low <= high for low, high in zip(*box, strict=True)), task
        assert info.outside and not any(touch(info.inside, box) for box in info.outside), task


def test_an_unlisted_task_is_the_user_s_mistake(env: Env, suite: str) -> None:
    """Catches a bare KeyError for a misspelt name."""
    with pytest.raises(UserError, match="did you mean"):
        env.reset(spec_of(suite, env.spec.tasks[0]).model_copy(update={"task": env.spec.tasks[0] + "x"}))
    with pytest.raises(UserError, match="did you mean"):
        make_env(EnvConfig(suite=suite, tasks=(env.spec.tasks[0] + "x",)))


def test_imports_stay_light(suite: str) -> None:
    """Catches a configuration check that loads a simulator, and environment workers that load torch (0.5 GB each)."""
    script = f"""
import sys
from gripline.axes import draw_changes
from gripline.config import EnvConfig
from gripline.envs import make_env
from gripline.envs.suites import env_spec
from gripline.types import EpisodeSpec
config = EnvConfig(suite={suite!r}, tasks={chosen_tasks(suite)!r})
env_spec(config)
heavy = {{"mujoco", "metaworld", "torch", "ray", "scipy"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
env = make_env(config)
env.reset(EpisodeSpec(suite={suite!r}, task=config.tasks[0], instruction="", init_seed=0, split="train"))
assert not {{"torch", "ray"}} & set(sys.modules)
env.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr

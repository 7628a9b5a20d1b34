"""What OOD axes change in Meta-World, and what they leave alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gripline.axes import draw_changes
from gripline.config import EnvConfig
from gripline.envs import make_env
from gripline.envs.gl import choose_renderer
from gripline.envs.suites import METAWORLD, task_info
from gripline.splits_config import OodConfig
from gripline.types import Distractor, EpisodeSpec, Perturbation

TASK = "faucet-open-v3"


@pytest.fixture(scope="module", autouse=True)
def renderer() -> None:
    choose_renderer("auto")


@pytest.fixture(scope="module")
def env() -> Iterator[Any]:
    made = make_env(EnvConfig(tasks=(TASK,)))
    yield made
    made.close()


def spec(task: str = TASK, seed: int = 0, **perturbation: object) -> EpisodeSpec:
    look = Perturbation.model_validate(perturbation)
    return EpisodeSpec(suite="metaworld", task=task, instruction="", init_seed=seed, split="ood", perturbation=look)


def image(env: Any, **perturbation: object) -> np.ndarray:
    picture: np.ndarray = env.reset(spec(**perturbation)).images_NHWC[0].astype(int)
    return picture


def test_every_scene_has_the_textures_and_room_for_the_distractors(env: Any) -> None:
    """Catches a material of another name, and a distractor where an object may start."""
    from gripline.envs.metaworld.scene import TABLE, TEXTURES
    from gripline.envs.metaworld.simulator import Simulator

    assert tuple(TEXTURES) == METAWORLD.textures
    for task, info in METAWORLD.tasks.items():
        simulator = Simulator(task, info, lean=True)
        model = simulator.scene.model
        assert all(model.material(name).id >= 0 for name in (TABLE, *TEXTURES.values())), task
        for seed in range(3):
            for region in ("inside", "outside"):
                simulator.reset(seed, region, Perturbation())
                hits = [place for place in METAWORLD.distractor_places_m if covered(model, simulator.data, place)]
                assert not hits, (task, seed, region, hits)
        simulator.close()


def covered(model: Any, data: Any, place_m: tuple[float, float]) -> list[str]:
    """Names of the bodies whose visible geoms lie near a place on the table, below the hand's height."""
    half = METAWORLD.distractor_size_m[1] + METAWORLD.distractor_jitter_m
    found = []
    for geom in range(model.ngeom):
        body = model.body(int(model.geom_bodyid[geom])).name
        if model.geom_group[geom] > 2 or body in ("world", "tablelink", "RetainingWall"):
            continue
        centre, extent = model.geom_aabb[geom, :3], model.geom_aabb[geom, 3:]
        rotation = data.geom_xmat[geom].reshape(3, 3)
        middle, reach = data.geom_xpos[geom] + rotation @ centre, np.abs(rotation) @ extent
        near = all(abs(middle[axis] - place_m[axis]) < reach[axis] + half for axis in (0, 1))
        if near and middle[2] - reach[2] < 2 * half:
            found.append(body)
    return found


def test_distractors_are_seen_and_cannot_be_touched(env: Any) -> None:
    """Catches things that lie out of sight, in other colours than the spec says, or in the hand's way."""
    plain = image(env)
    for number, place in enumerate(METAWORLD.distractor_places_m):
        thing = Distractor(shape="box", centre_m=place, size_m=METAWORLD.distractor_size_m[0], rgb=(0.9, 0.0, 0.9))
        changed = image(env, distractors=(thing,)) - plain
        seen = np.abs(changed).sum(axis=-1) > 30
        assert 4 <= seen.sum() <= 200, (number, place, seen.sum())
        assert changed[seen][:, 1].mean() < min(changed[seen][:, 0].mean(), changed[seen][:, 2].mean())
    simulator = env._simulator
    assert simulator.scene.model.ngeom == simulator.scene._geom_rgba.shape[0]


def test_a_narrower_view_shows_things_larger_and_people_see_as_ever(env: Any) -> None:
    def red_pixels(**perturbation: object) -> int:
        shown = image(env, **perturbation)
        return int(((shown[..., 0] > 90) & (shown[..., 1] < 40)).sum())

    assert red_pixels(fov_offset_deg=-12) > 1.3 * red_pixels() > 1.3 * 1.3 * red_pixels(fov_offset_deg=12)
    env.reset(spec())
    usual = env.render_for_people(256)
    env.reset(spec(fov_offset_deg=-12))
    assert np.array_equal(env.render_for_people(256), usual)


def test_a_texture_changes_the_table_and_not_the_object(env: Any) -> None:
    plain = image(env)
    red = (plain[..., 0] > 90) & (plain[..., 1] < 40)
    for texture in METAWORLD.textures:
        changed = np.abs(image(env, texture=texture) - plain).sum(axis=-1)
        assert (changed > 20).mean() > 0.3, texture
        assert (changed[red] < 20).mean() > 0.8, texture


@pytest.mark.parametrize("task", ["faucet-open-v3", "drawer-close-v3", "pick-place-v3", "window-close-v3"])
def test_the_hand_starts_where_it_is_told_and_things_stay(task: str) -> None:
    """Catches an offset that the reset undoes, one that moves an object, and one that is kept for the next episode."""
    from gripline.envs.metaworld.simulator import Simulator

    simulator = Simulator(task, task_info("metaworld", task), lean=True)
    simulator.reset(5, "inside", Perturbation())
    hand, things = simulator.proprio_P()[:3], simulator.scene.placement()
    positions = simulator.data.qpos[9:].copy()
    for index in range(12):
        changes = draw_changes("robot", OodConfig(), "metaworld", task, index, np.random.default_rng(index))
        look = changes["perturbation"]
        simulator.reset(5, "inside", look)
        assert np.allclose(simulator.proprio_P()[:3] - hand, look.hand_offset_m, atol=0.012), look
        assert np.allclose(simulator.data.qpos[9:], positions, atol=1e-3)
        assert all(map(np.array_equal, simulator.scene.placement(), things))
    simulator.reset(5, "inside", Perturbation())
    assert np.array_equal(simulator.proprio_P()[:3], hand)
    simulator.close()


def constants(model: Any) -> dict[str, np.ndarray]:
    from gripline.envs.metaworld.scene import PHYSICS

    return {name: getattr(model, name).copy() for name in PHYSICS}


def test_factors_on_friction_and_mass_are_applied_to_objects_and_undone(env: Any) -> None:
    """Catches a robot that gets heavier too, masses that MuJoCo's derived constants know nothing of, and leftovers."""
    env.reset(spec())
    model = env._simulator.scene.model
    before = constants(model)
    env.reset(spec(friction_gain=0.5, mass_gain=3.0))
    during = constants(model)
    robot = model.body_rootid == model.body_rootid[model.body("hand").id]
    handle = model.body("faucet_link1").id if "faucet_link1" in names(model) else int(np.nonzero(~robot)[0][-1])
    assert np.array_equal(before["body_mass"][robot], during["body_mass"][robot])
    assert during["body_mass"][handle] == pytest.approx(3 * before["body_mass"][handle]) and before["body_mass"][handle]
    assert np.allclose(during["geom_friction"], 0.5 * before["geom_friction"])
    assert not np.allclose(during["dof_M0"], before["dof_M0"])
    env.reset(spec())
    after = constants(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def names(model: Any) -> set[str]:
    return {model.body(number).name for number in range(model.nbody)}


def test_the_first_state_does_not_depend_on_friction_and_mass(env: Any) -> None:
    """Catches a remembered start that was made under another episode's physics."""
    for seed in range(3):
        states = []
        for gains in ({"friction_gain": 0.3, "mass_gain": 4.0}, {}, {"friction_gain": 2.0}):
            env.reset(spec(seed=seed, **gains))
            states.append(env._simulator.data.qpos.copy())
        assert np.array_equal(states[0], states[1]) and np.array_equal(states[1], states[2])

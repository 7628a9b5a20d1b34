"""Split lists: disjoint, hashed, and the same everywhere."""

import json

import pytest

from gripline import profiles
from gripline.axes import AXES
from gripline.config import Profile
from gripline.envs.suites import METAWORLD
from gripline.errors import UserError
from gripline.splits import ABLATIONS, OOD_AXES, Splits, build_splits, check_disjoint

SMALL = {"train_per_task": 30, "val_per_task": 5, "iid_per_task": 6, "ood_per_task": 4, "ablation_per_task": 3}


def _profile(**changes) -> Profile:
    body = {"name": "p", "env": {"tasks": ["faucet-open-v3", "faucet-close-v3", "drawer-open-v3"]}, "splits": SMALL}
    return Profile.model_validate(body | {"variation": {"camera_m": 0.03}} | changes)


PINNED = {
    "train": "db87136b32e3aab0745445a8469c637d266724715e1b9e6e90650220a494aa06",
    "val": "9f6226d70a098a861b4a25c9601addf4aae0facd4f4d68d0e04ff07b7b375317",
    "iid": "e7df68785de8710487585665eaea04035c8e8480786b3ebec4b25989cc9245b8",
    "ood": "a289412a7aa24964b19ee2b1d09e034eb14c51c2b8217c8e0c9a7cb269a64d7b",
    "ablations": "3cd3fa4e1608199eb2dde9e947042abb5cdd88d8ecf84205a47fbc47c0f53994",
}
"""Of profile laptop, for which results were published."""


def test_published_lists_stay_as_they_are():
    """Catches a new field or axis that changes what measured results refer to."""
    splits = build_splits(profiles.load("laptop"))
    assert splits.hashes == PINNED
    assert splits.lists["ood"][25].key == "a73fc1587800c01d"


def _everywhere(**changes) -> Profile:
    ood = {"axes": AXES, "unseen_tasks": ["door-open-v3", "reach-v3"]} | changes
    return _profile(splits=SMALL | {"ood": ood})


def test_an_axis_that_is_switched_on_or_off_leaves_the_others_alone():
    """Catches draws that shift: results of two profiles could no longer be paired."""
    usual, all_, few = (
        build_splits(profile).lists
        for profile in (_profile(), _everywhere(), _everywhere(axes=["texture", "light"], unseen_tasks=[]))
    )
    assert [spec for spec in all_["ood"] if spec.axis in OOD_AXES] == usual["ood"]
    assert few["ood"] == [spec for spec in all_["ood"] if spec.axis in ("texture", "light")]
    for name in ("iid", "ablations", "train", "val"):
        assert all_[name] == usual[name] == few[name]


def test_further_axes_change_what_they_say_and_nothing_else():
    lists = build_splits(_everywhere()).lists
    own = {axis: [spec for spec in lists["ood"] if spec.axis == axis] for axis in AXES if axis not in OOD_AXES}
    assert {axis: len(specs) for axis, specs in own.items()} == {
        "robot": 12, "fov": 12, "texture": 12, "distractors": 12, "physics": 12, "unseen_task": 8,
    }  # fmt: skip
    changed = {
        axis: {field for spec in specs for field in spec.perturbation.model_dump(exclude_defaults=True)}
        for axis, specs in own.items()
    }
    assert changed == {
        "robot": {"hand_offset_m"}, "fov": {"fov_offset_deg"}, "texture": {"texture"},
        "distractors": {"distractors"}, "physics": {"friction_gain", "mass_gain"}, "unseen_task": set(),
    }  # fmt: skip
    known = {spec.task: spec.instruction for spec in lists["iid"]}
    for axis, specs in own.items():
        assert all(spec.region == "inside" for spec in specs)
        assert axis == "unseen_task" or all(spec.instruction == known[spec.task] for spec in specs)
    assert {spec.task for spec in own["unseen_task"]} == {"door-open-v3", "reach-v3"}
    assert {spec.perturbation.fov_offset_deg for spec in own["fov"]} == {8.0, -8.0}
    assert {spec.perturbation.texture for spec in own["texture"]} == set(METAWORLD.textures)
    assert {len(spec.perturbation.distractors) for spec in own["distractors"]} == {3}
    assert len({spec.perturbation.distractors for spec in own["distractors"]}) == 12
    for spec in own["robot"]:
        assert sum(part**2 for part in spec.perturbation.hand_offset_m) ** 0.5 == pytest.approx(0.06, abs=1e-3)


def test_strengths_are_the_profile_s():
    ood = {"robot_m": 0.1, "fov_deg": 4, "textures": ["tiles"], "distractors": 5, "friction": 2, "mass": 0.5}
    for spec in build_splits(_everywhere(**ood)).lists["ood"]:
        look = spec.perturbation
        assert spec.axis != "robot" or sum(part**2 for part in look.hand_offset_m) ** 0.5 == pytest.approx(
            0.1, abs=1e-3
        )
        assert spec.axis != "fov" or abs(look.fov_offset_deg) == 4
        assert spec.axis != "texture" or look.texture == "tiles"
        assert spec.axis != "distractors" or len(look.distractors) == 5
        assert spec.axis != "physics" or (look.friction_gain, look.mass_gain) == (2, 0.5)


@pytest.mark.parametrize(
    ("ood", "message"),
    [
        ({"axes": ["fog"]}, "Input should be 'position', 'camera'"),
        ({"axes": ["light", "light"]}, "axes: one is named twice"),
        ({"axes": ["unseen_task"]}, "unseen_tasks must name tasks"),
        ({"unseen_tasks": ["door-open-v3"]}, "if, and only if, axes holds unseen_task"),
        ({"axes": ["unseen_task"], "unseen_tasks": ["drawer-open-v3"]}, "'drawer-open-v3' is a task of env.tasks"),
        ({"axes": ["physics"], "friction": 1, "mass": 1}, "axis physics would change nothing"),
        ({"fov_deg": 0}, "greater than 0"),
        ({"robot_m": 0}, "greater than 0"),
        ({"distractors": 0}, "greater than or equal to 1"),
    ],
)
def test_axes_that_test_nothing_new_are_refused(ood, message):
    """Catches a shift that is none: its success would be read as robustness."""
    with pytest.raises(ValueError, match=message):
        _profile(splits=SMALL | {"ood": ood})


@pytest.mark.parametrize(
    ("suite", "ood", "message"),
    [
        (
            "toy",
            {"axes": ["physics"]},
            r"ood\.axes: 'physics' would change nothing in suite 'toy'; choose of: position",
        ),
        ("toy", {"textures": ["chekcs"]}, r"ood\.textures: suite 'toy' has no texture 'chekcs'; did you mean 'checks'"),
        (
            "toy",
            {"axes": ["unseen_task"], "unseen_tasks": ["toy-egde"]},
            "unknown task 'toy-egde' of suite 'toy'; did you mean 'toy-edge'",
        ),
    ],
)
def test_axes_that_a_suite_cannot_do_are_refused_with_those_that_it_can(suite, ood, message):
    env = {"suite": suite, "tasks": ["toy-red", "toy-blue"]}
    with pytest.raises(UserError, match=message):
        build_splits(_profile(env=env, splits=SMALL | {"ood": ood}))


def test_a_shift_is_measured_only_where_its_axis_is_tested():
    """Catches a profile without axis 'light' that is refused because of the light it does not test."""
    _profile(variation={"light": [0.4, 1.2]}, splits=SMALL | {"ood": {"axes": ["camera"]}})


def test_no_tested_state_is_ever_trained_on():
    lists = build_splits(_profile()).lists
    owners: dict[tuple, set[str]] = {}
    for name in ("train", "val", "iid", "ood"):
        for spec in lists[name]:
            owners.setdefault((spec.task, spec.init_seed), set()).add(name)
    assert all(len(names) == 1 for names in owners.values())
    assert {name: len(lists[name]) for name in lists} == {
        "train": 90, "val": 15, "iid": 18, "ood": 3 * 4 * len(OOD_AXES), "ablations": 3 * 3 * len(ABLATIONS),
    }  # fmt: skip


def test_another_training_seed_keeps_the_test_lists_and_changes_the_training_lists():
    one, two = build_splits(_profile(seed=1)).hashes, build_splits(_profile(seed=2)).hashes
    assert {name: one[name] == two[name] for name in one} == {
        "train": False, "val": False, "iid": True, "ood": True, "ablations": True,
    }  # fmt: skip
    assert build_splits(_profile(seed=1)).hashes == one


def test_overlap_is_an_error():
    lists = dict(build_splits(_profile()).lists)
    lists["train"] = [*lists["train"], lists["iid"][0].model_copy(update={"split": "train"})]
    with pytest.raises(UserError, match="is also in 'train'"):
        check_disjoint(lists)


def test_axes_change_what_they_say_and_nothing_else():
    lists = build_splits(_profile()).lists
    by_axis = {axis: [spec for spec in lists["ood"] if spec.axis == axis] for axis in OOD_AXES}
    assert {spec.region for spec in by_axis["position"]} == {"outside"}
    for spec in by_axis["camera"]:
        assert sum(part**2 for part in spec.perturbation.camera_offset_m) ** 0.5 == pytest.approx(0.06, abs=1e-3)
    assert {spec.perturbation.light_gain for spec in by_axis["light"]} == {0.5}
    known = {spec.instruction for spec in lists["iid"]}
    assert not known & {spec.instruction for spec in by_axis["paraphrase"]}
    assert all(spec.instruction in known for axis in OOD_AXES if axis != "paraphrase" for spec in by_axis[axis])


def test_ablations_are_iid_episodes_with_one_input_changed():
    lists = build_splits(_profile()).lists
    iid = {spec.init_state_key: spec for spec in lists["iid"]}
    for spec in lists["ablations"]:
        intact = iid[spec.init_state_key]
        assert (spec.perturbation.blank_image, spec.instruction == intact.instruction, spec.instruction == "") == {
            "no_image": (True, True, False),
            "no_instruction": (False, False, True),
            "swapped_instruction": (False, False, False),
        }[spec.axis]


def test_written_lists_come_back_and_edited_ones_are_refused(tmp_path):
    splits = build_splits(_profile())
    path = tmp_path / "splits.json"
    splits.write(path)
    assert Splits.read(path).hashes == splits.hashes
    body = json.loads(path.read_text())
    body["lists"]["iid"][0]["init_seed"] += 1
    path.write_text(json.dumps(body))
    with pytest.raises(UserError, match=r"hashes\.iid.*edited"):
        Splits.read(path)
    path.write_text("{")
    with pytest.raises(UserError, match="not a readable split file"):
        Splits.read(path)


def test_ood_shifts_that_training_covers_are_refused():
    with pytest.raises(ValueError, match=r"lies within variation\.camera_m"):
        _profile(variation={"camera_m": 0.06})
    with pytest.raises(ValueError, match=r"lies within variation\.light"):
        _profile(variation={"light": [0.4, 1.2]})

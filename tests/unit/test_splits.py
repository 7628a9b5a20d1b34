"""Split lists: disjoint, hashed, and the same everywhere."""

import json

import pytest

from gripline.config import Profile
from gripline.errors import UserError
from gripline.splits import ABLATIONS, OOD_AXES, Splits, build_splits, check_disjoint

SMALL = {"train_per_task": 30, "val_per_task": 5, "iid_per_task": 6, "ood_per_task": 4, "ablation_per_task": 3}


def _profile(**changes) -> Profile:
    body = {"name": "p", "env": {"tasks": ["faucet-open-v3", "faucet-close-v3", "drawer-open-v3"]}, "splits": SMALL}
    return Profile.model_validate(body | {"variation": {"camera_m": 0.03}} | changes)


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

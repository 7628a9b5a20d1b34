"""Profiles: what is shipped loads, and every mistake is one line that names place, field and next step."""

import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from gripline import profiles
from gripline.config import Profile
from gripline.errors import UserError
from gripline.splits import build_splits


@pytest.mark.parametrize("name", profiles.names())
def test_shipped_profile_is_complete(name: str) -> None:
    """Catches: a profile whose file name, keys, tasks or split sizes do not work. New files are tested too."""
    profile = profiles.load(name)
    assert profile.name == name
    assert profile.description
    assert build_splits(profile).lists["iid"]


@pytest.mark.parametrize("name", profiles.names())
def test_dump_and_load_give_the_same_profile(name: str) -> None:
    """Catches: a run folder's or a cluster's copy that is another profile than the one given."""
    profile = profiles.load(name)
    assert profiles.load(profiles.dump(profile)) == profile


def test_overrides_win_over_the_file_and_seed_over_both() -> None:
    overrides = ["rl.lr=1e-4", "env.tasks=[faucet-open-v3, drawer-open-v3]", "sft.lora.rank=4", "seed=5"]
    profile = profiles.load("laptop", overrides, seed=9)
    assert profile.rl.lr == 1e-4  # YAML 1.1 reads this as a text; the schema makes it a number
    assert profile.env.tasks == ("faucet-open-v3", "drawer-open-v3")
    assert (profile.sft.lora.rank, profile.seed) == (4, 9)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("rl.lrr=1", "--set: rl.lrr: unknown key; did you mean 'lr'?"),
        ("rll.lr=1", "--set: rll: unknown key; did you mean 'rl'?"),
        ("rl.lr=-1", "--set: rl.lr: must be greater than 0, got -1; the default is 0.0003"),
        ("rl.lr=fast", "--set: rl.lr: must be a valid number, unable to parse string as a number, got 'fast'"),
        ("rl.method=ful", "--set: rl.method: must be 'full' or 'lora', got 'ful'; did you mean 'full'?"),
        ("rl=3", "--set: rl: is a section, not a value; set its keys, such as method"),
        ("sft.lr.x=3", "--set: sft.lr: must be a valid number, got {'x': 3}"),
        ("name.x=3", "--set: name.x: 'name' is a value, not a section"),
        ("rl.lr", "--set: rl.lr: is not of the form section.key=value"),
        (".=3", "--set: .=3: is not of the form section.key=value"),
        ("rl.lr=[1", "--set: rl.lr: '[1' is not a YAML value"),
        ("env.tasks=[]", "--set: env.tasks: "),
        ("env.tasks=[1]", "--set: env.tasks[0]: must be a valid string, got 1"),
        ("rl.keep_success=[0.1]", "--set: rl.keep_success[1]: is missing"),
        ("rollout.slots_per_worker=0", "--set: rollout.slots_per_worker: must be greater than or equal to 1, got 0"),
        ("rollout.reset_timeout_s=0", "--set: rollout.reset_timeout_s: must be greater than 0, got 0"),
        ("rollout.parallel_steps=18", "--set: rollout: parallel_steps 18 exceeds the 17 slots of a worker"),
        ("rl.env_workers=2", "--set: rl.env_workers: unknown key"),
        ("variation.light=[2, 1]", "--set: variation: light: low 2.0 and high 1.0 must satisfy"),
    ],
)
def test_bad_override_is_told_with_its_key(override: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        profiles.load("laptop", [override])
    assert refused.value.line.startswith(told)
    assert refused.value.next_step


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("env:\n  tasks: [a]\n", "name: is missing"),
        ("name: x\nenv:\n  tasks: [a]\n  taks: [b]\n", "env.taks: unknown key; did you mean 'tasks'?"),
        ("name: Über\nenv:\n  tasks: [a]\n", "name: String should match pattern"),
        ("name: x\nenv: {tasks: [a]}\nrl: {lr: 0}\nsft: {lr: 0}\n", "(and 1 more)"),
        ("name: [x\n", "line 2: is not valid YAML"),
        ("- name\n", "is not a mapping"),
        ("", "is not a mapping"),
    ],
)
def test_bad_file_is_told_with_its_name(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        profiles.load(str(path))
    assert refused.value.line.startswith(f"{path}: ") and told in refused.value.line


def test_unreadable_profiles_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    for path, told in (("none.yaml", "No such file"), ("latin.yaml", "is not UTF-8 text"), (".", "Is a directory")):
        with pytest.raises(UserError, match=told):
            profiles.load(f"{tmp_path}/{path}")
    with pytest.raises(UserError, match="did you mean 'laptop'"):
        profiles.load("labtop")


def test_missing_profile_folder_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel does not bring the shipped profiles."""
    monkeypatch.setattr(profiles, "FOLDER", tmp_path)
    with pytest.raises(UserError, match="install from a clone"):
        profiles.load("laptop")


def test_first_difference_names_the_field() -> None:
    ours = profiles.load("laptop")
    assert profiles.first_difference(ours, profiles.load("laptop")) == ""
    theirs = profiles.load("laptop", ["sft.lora.rank=3"])
    assert profiles.first_difference(ours, theirs) == "sft.lora.rank is 16 here, 3 there"


@settings(deadline=None, max_examples=40)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner)))
def test_any_value_is_taken_or_refused_in_one_line(value: object) -> None:
    """Catches: a traceback of pydantic's or ours for a value that nobody thought of."""
    cluster = ("cluster", "cluster.stages", "cluster.env", "cluster.env.placement", "cluster.env.container_env")
    for key in ("seed", "env.tasks", "rl", "rl.keep_success", "sft.lora.rank", "name", "policy.preset", *cluster):
        try:
            assert isinstance(profiles.load("laptop", [f"{key}={value}"]), Profile)
        except UserError as refused:
            assert "\n" not in refused.line


def choices_with_off(section: type[BaseModel], path: str = "") -> Iterator[str]:
    """Every field of the schema that may be 'off', as `--set` names it."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from choices_with_off(field.annotation, f"{path}{name}.")
        elif get_origin(field.annotation) is Literal and "off" in get_args(field.annotation):
            yield f"{path}{name}"


def test_off_needs_no_quotes() -> None:
    """Catches YAML's own reading of the word: `promote.gate_fit=off` was refused as False."""
    names = list(choices_with_off(Profile))
    assert {"promote.gate_fit", "rl.guard.mode"} <= set(names)
    profile = profiles.load("smoke", [f"{name}=off" for name in names])
    assert {operator.attrgetter(name)(profile) for name in names} == {"off"}

"""`gripline splits`: lists shown, written, checked; and a checkpoint that has seen what is tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gripline import preflight, profiles
from gripline.checkpoint import Contract, Manifest, Provenance, new_checkpoint
from gripline.envs.suites import env_spec
from gripline.errors import UserError
from gripline.seen_states import seen_in
from gripline.splits import Splits, build_splits
from pipelines.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["splits", *arguments])
    shown = capsys.readouterr()
    return int(str(ended.value.code)), shown.out, shown.err


def test_lists_are_shown_written_and_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches counts of other episodes than those that are hashed, and a file that its own profile does not fit."""
    path, splits = tmp_path / "lists.json", build_splits(profiles.load("smoke"))
    code, shown, _ = run(capsys, "smoke", "--out", str(path))
    assert code == 0 and Splits.read(path).hashes == splits.hashes
    rows = [line.split() for line in shown.splitlines()]
    assert rows[0] == ["list", "axis", "faucet-open-v3", "faucet-close-v3", "all", "sha256"]
    assert ["iid", "2", "2", "4", splits.hashes["iid"][:16]] in rows
    assert ["ood", "position", "1", "1", "2", splits.hashes["ood"][:16]] in rows and ["light", "1", "1", "2"] in rows
    assert run(capsys, "--check", str(path))[0] == 0
    code, shown, _ = run(capsys, "smoke", "--check", str(path))
    assert code == 0 and "no tested state is trained on, and what smoke draws" in shown


def test_files_that_are_not_what_they_should_be_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches an edited list, another profile's, and a list whose states are also trained on."""
    path, splits = tmp_path / "lists.json", build_splits(profiles.load("smoke"))
    splits.write(path)

    def refused(*arguments: str) -> str:
        code, _, told = run(capsys, *arguments)
        assert code == 2 and told.count("\n") == 1, told
        return told

    check = ("--check", str(path))
    assert "lists train, val differ; give the profile, --set" in refused("smoke", "--seed", "9", *check)
    assert "lists iid, ood, ablations" in refused("smoke", "--set", "splits.seed=3", *check).replace("train, val, ", "")
    assert "PROFILE: is missing" in refused("--seed", "9", *check) + refused()
    body = json.loads(path.read_text())
    body["lists"]["iid"][0]["init_seed"] += 1
    path.write_text(json.dumps(body))
    assert "hashes.iid: does not match its list: the file was edited" in refused(*check)
    body["lists"]["train"][0] = body["lists"]["iid"][0] | {"split": "train", "axis": "train"}
    path.write_text(json.dumps(body))
    assert "is also in 'train'; a tested state must never be trained on" in refused(*check)
    for damaged in ("[]", "{", '{"lists": [], "hashes": {}}', '{"lists": {"train": 3}, "hashes": {}}', "\x00"):
        path.write_text(damaged)
        assert "not a readable split file" in refused(*check)
    assert "not a readable split file" in refused("--check", str(tmp_path / "none.json"))


def test_wrong_axes_are_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    """Catches a run that starts, and stops hours later in its evaluation."""
    for arguments in (["run"], ["splits"]):
        command = [sys.executable, "-X", "importtime", "-m", "pipelines.cli", *arguments, "laptop"]
        done = subprocess.run(
            [*command, "--set", "splits.ood.axes=[unseen_task]", "--set", "splits.ood.unseen_tasks=[dor-open-v3]"],
            capture_output=True, text=True, cwd=tmp_path, timeout=60,
        )  # fmt: skip
        told = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
        assert done.returncode == 2 and len(told) == 1
        assert "unknown task 'dor-open-v3' of suite 'metaworld'; did you mean 'door-open-v3'?" in told[0]
        assert not {"torch", "mujoco", "ray", "matplotlib"} & {
            line.split("|")[-1].strip() for line in done.stderr.splitlines()
        }


def make_checkpoint(folder: Path, seen: dict[str, str]) -> str:
    env = profiles.load("laptop").env
    spec = env_spec(env)
    contract = Contract(
        suite=spec.suite, cameras=spec.cameras, image_size_px=spec.image_size_px, proprio_dim=0,
        action_dim=spec.action_dim, action_low_A=spec.action_low_A, action_high_A=spec.action_high_A, num_actions=1,
        hold_steps=env.hold_steps, num_bins=256,
    )  # fmt: skip
    provenance = Provenance(stage="sft", seen_states=seen)
    manifest = Manifest(policy="tiny", contract=contract, heads_trained=("token",), provenance=provenance)
    with new_checkpoint(folder, manifest):
        pass
    return str(folder)


def test_a_checkpoint_that_has_seen_what_is_tested_is_refused(tmp_path: Path) -> None:
    """Catches a policy that is started from (`--from`) and tested on its own training states."""
    profile = profiles.load("laptop")
    lists, warnings = build_splits(profile).lists, list[str]()
    leaky = make_checkpoint(tmp_path / "leaky", seen_in([*lists["train"], lists["iid"][7]]))
    with pytest.raises(UserError, match=rf"^{leaky}: .*trained on faucet-open-v3 init seed \d+, which this run tests"):
        preflight.check(profile, leaky, warn=warnings.append)
    clean = make_checkpoint(tmp_path / "clean", seen_in([*lists["train"], *lists["val"]]))
    preflight.check(profile, clean, warn=warnings.append)
    assert warnings == []
    unseen = profiles.load(
        "laptop",
        ["env.tasks=[faucet-open-v3, drawer-open-v3]", "splits.ood.axes=[unseen_task]",
         "splits.ood.unseen_tasks=[faucet-close-v3]"],
    )  # fmt: skip
    with pytest.raises(UserError, match="trained on task 'faucet-close-v3', which this run tests as unseen"):
        preflight.check(unseen, clean)
    preflight.check(profile, make_checkpoint(tmp_path / "old", {}), warn=warnings.append)
    assert len(warnings) == 1 and "does not say what it was trained on" in warnings[0]


def test_instructions_that_the_policy_cannot_read_are_refused_before_the_run() -> None:
    """Catches a paraphrase or an unseen task that stops a run in its evaluation, hours later."""
    longest = max(len(spec.instruction.split()) for spec in build_splits(profiles.load("smoke")).tested)
    preflight.check(profiles.load("smoke", [f"policy.tiny.max_text_tokens={longest + 1}"]), "")
    expected = rf"^smoke: policy.tiny.max_text_tokens: is {longest}, .*set it to {longest + 1}"
    with pytest.raises(UserError, match=expected):
        preflight.check(profiles.load("smoke", [f"policy.tiny.max_text_tokens={longest}"]), "")

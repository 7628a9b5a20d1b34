"""The checkpoint directory: all or nothing, verified, refused in one line. No policy and no torch is needed here."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from gripline.checkpoint import (
    MANIFEST_FILE,
    Contract,
    Manifest,
    Provenance,
    check_fits,
    checkpoint_hash,
    new_checkpoint,
    read_manifest,
)
from gripline.config import EnvConfig
from gripline.errors import UserError
from gripline.types import EnvSpec

ENV = EnvConfig(tasks=("drawer-open-v3",), hold_steps=8)
ENV_SPEC = EnvSpec(
    suite="metaworld",
    tasks=("drawer-open-v3",),
    cameras=("front",),
    image_size_px=64,
    proprio_dim=4,
    action_dim=4,
    action_low_A=(-1.0,) * 4,
    action_high_A=(1.0,) * 4,
    control_hz=80.0,
    horizon_steps=112,
    success_means="the drawer is open",
)
CONTRACT = Contract(
    suite="metaworld",
    cameras=("front",),
    image_size_px=64,
    proprio_dim=0,
    action_dim=4,
    action_low_A=(-1.0,) * 4,
    action_high_A=(1.0,) * 4,
    num_actions=1,
    hold_steps=8,
    num_bins=256,
)
MANIFEST = Manifest(
    policy="tiny",
    contract=CONTRACT,
    heads_trained=("token",),
    provenance=Provenance(stage="sft", split_hashes={"train": "ab"}, config={"lr": 1e-3}),
)


def write(directory: Path, manifest: Manifest = MANIFEST) -> Path:
    with new_checkpoint(directory, manifest) as temporary:
        (temporary / "model.safetensors").write_bytes(b"weights")
        (temporary / "lora_adapter").mkdir()
        (temporary / "lora_adapter" / "adapter_model.safetensors").write_bytes(b"adapter")
    return directory


def error_of(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_manifest(directory)
    assert "\n" not in str(caught.value) and caught.value.next_step
    return str(caught.value)


def test_a_checkpoint_reads_back_with_every_file_hashed(tmp_path: Path) -> None:
    """Catches a file, also one in a folder, that the manifest does not cover."""
    manifest = read_manifest(write(tmp_path / "new" / "checkpoint"))
    assert set(manifest.files) == {"model.safetensors", "lora_adapter/adapter_model.safetensors"}
    assert manifest.model_copy(update={"files": {}}) == MANIFEST
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["checkpoint"]


def test_the_hash_names_content_and_origin(tmp_path: Path) -> None:
    """Catches a lineage in which two different checkpoints have one name."""
    other = MANIFEST.model_copy(update={"provenance": Provenance(stage="rl", parent="ab")})
    first, same, child = (write(tmp_path / name, manifest) for name, manifest in
                          (("a", MANIFEST), ("b", MANIFEST), ("c", other)))  # fmt: skip
    assert checkpoint_hash(first) == checkpoint_hash(same) != checkpoint_hash(child)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing(tmp_path: Path, code: int) -> None:
    """Catches a half-written directory that the next stage would take for a checkpoint."""
    refused = pytest.raises(UserError, match="the disk is full")
    with refused as caught, new_checkpoint(tmp_path / "checkpoint", MANIFEST) as temporary:
        (temporary / "model.safetensors").write_bytes(b"half")
        raise OSError(code, "No space left on device")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    """Catches a partial directory that stays after Ctrl-C."""
    with pytest.raises(KeyboardInterrupt), new_checkpoint(tmp_path / "checkpoint", MANIFEST) as temporary:
        (temporary / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_existing_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    """Catches a rerun that destroys a finished result."""
    before = checkpoint_hash(write(tmp_path / "checkpoint"))
    with pytest.raises(UserError, match="exists already"):
        write(tmp_path / "checkpoint")
    assert checkpoint_hash(tmp_path / "checkpoint") == before


def test_a_parent_that_cannot_be_written_to(tmp_path: Path) -> None:
    """Catches a traceback where a file stands in the way."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "file" / "checkpoint")


def test_missing_torn_and_edited_files_are_named(tmp_path: Path) -> None:
    """Catches weights that changed on the way between stages."""
    assert "no such checkpoint directory" in error_of(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "manifest.json: is missing" in error_of(tmp_path / "empty")
    with pytest.raises(UserError, match="is missing"):
        checkpoint_hash(tmp_path / "empty")
    weights = write(tmp_path / "checkpoint") / "model.safetensors"
    weights.write_bytes(b"weight")
    assert "model.safetensors: files: differs from its hash" in error_of(tmp_path / "checkpoint")
    weights.unlink()
    assert "model.safetensors: files: is missing" in error_of(tmp_path / "checkpoint")


def test_a_bad_manifest_is_told_by_field(tmp_path: Path) -> None:
    """Catches a traceback on a torn, foreign or newer manifest."""
    path = write(tmp_path / "checkpoint") / MANIFEST_FILE
    content = json.loads(path.read_text())
    path.write_text(path.read_text()[:100])
    assert "Invalid JSON" in error_of(tmp_path / "checkpoint")
    path.write_text(json.dumps(content | {"format_version": 2}))
    assert "format_version" in error_of(tmp_path / "checkpoint")
    path.write_text(json.dumps(content | {"contract": content["contract"] | {"action_dim": "four"}}))
    assert "contract.action_dim" in error_of(tmp_path / "checkpoint")


def test_a_fitting_checkpoint_is_accepted() -> None:
    """Catches a check that refuses everything; proprioception that the policy does not read may differ."""
    check_fits(MANIFEST, ENV_SPEC, ENV, where="checkpoint")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suite", "libero"),
        ("cameras", ("front", "wrist")),
        ("image_size_px", 224),
        ("action_dim", 7),
        ("action_low_A", (-2.0,) * 4),
        ("action_high_A", (2.0,) * 4),
        ("hold_steps", 4),
        ("proprio_dim", 9),
    ],
)
def test_each_misfit_is_one_line_with_its_field(field: str, value: object) -> None:
    """Catches a policy that runs in an environment it was not made for, and merely scores zero."""
    other = MANIFEST.model_copy(update={"contract": CONTRACT.model_copy(update={field: value})})
    with pytest.raises(UserError) as caught:
        check_fits(other, ENV_SPEC, ENV, where="my/checkpoint")
    line = str(caught.value)
    assert line.startswith(f"my/checkpoint: contract.{field}: ") and "\n" not in line and caught.value.next_step


@pytest.mark.parametrize(("heads", "shown"), [((), "none"), (("l1",), "l1")])
def test_an_untrained_token_head_is_refused(heads: tuple[str, ...], shown: str) -> None:
    """Catches RL from a head that was never trained: every metric would stay zero."""
    untrained = MANIFEST.model_copy(update={"heads_trained": heads})
    with pytest.raises(UserError, match=rf"never trained \(trained: {shown}\)"):
        check_fits(untrained, ENV_SPEC, ENV, where="checkpoint")


def test_unknown_fields_are_errors() -> None:
    """Catches a misspelt piece of provenance that would be lost."""
    with pytest.raises(ValidationError):
        Provenance(stage="sft", data_hsh="ab")  # type: ignore[call-arg]


def test_reading_a_manifest_needs_no_torch() -> None:
    """Catches a heavy import on the way to a configuration error."""
    code = (
        "import sys, gripline.checkpoint, gripline.policies, gripline.policies.architecture, gripline.policies.actions;"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""LoRA checkpoints: either method starts from what either method wrote."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from gripline.checkpoint import checkpoint_hash, read_manifest
from gripline.config import EnvConfig, LoraConfig, PolicyConfig
from gripline.errors import UserError
from gripline.policies import build_policy, load_policy, save_policy
from gripline.policies.inference import token_logprobs
from gripline.policies.lora import apply_lora, has_adapters
from gripline.policies.vla import VLA
from gripline.types import EnvSpec

ENV = EnvConfig(tasks=("drawer-open-v3",))
LORA = LoraConfig(rank=4, alpha=8)
ENV_SPEC = EnvSpec(
    suite="metaworld",
    tasks=("drawer-open-v3",),
    cameras=("front",),
    image_size_px=32,
    proprio_dim=4,
    action_dim=4,
    action_low_A=(-1.0,) * 4,
    action_high_A=(1.0,) * 4,
    control_hz=80.0,
    horizon_steps=112,
    success_means="the drawer is open",
)


def fresh() -> VLA:
    return build_policy(PolicyConfig(), ENV_SPEC, instructions=["open the drawer"], seed=1)


def inputs(vla: VLA) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    side = vla.architecture.image_size_px
    images = np.random.default_rng(0).integers(0, 256, (8, 1, side, side, 3), dtype=np.uint8)
    return torch.from_numpy(images), torch.zeros(8, 4), *vla.encode_text(["open the drawer", ""] * 4)


def answers(vla: VLA) -> Tensor:
    with torch.no_grad():
        return vla(*inputs(vla))


def train(vla: VLA) -> VLA:
    """A few steps towards fixed tokens: enough to move whatever is trainable."""
    trainable = [parameter for parameter in vla.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    tokens = torch.full((8, vla.architecture.num_actions, vla.architecture.action_dim), 200)
    for _ in range(3):
        optimizer.zero_grad()
        (-token_logprobs(vla(*inputs(vla)), tokens, 1.0).mean()).backward()
        optimizer.step()
    vla.heads_trained = ("token",)
    return vla


@pytest.mark.parametrize("second", ["full", "lora"])
@pytest.mark.parametrize("first", ["full", "lora"])
def test_either_method_starts_from_either(first: str, second: str, tmp_path: Path) -> None:
    """Catches a checkpoint that only its own method can read, and one that is not the policy that was trained."""
    policy, parent = fresh(), None
    for number, method in enumerate((first, second)):
        if method == "lora":
            apply_lora(policy, LORA, seed=number)
        train(policy)
        env = ENV if parent is None else None
        parent = save_policy(tmp_path / str(number), policy, env=env, stage="sft", parent=parent)
        loaded = load_policy(tmp_path / str(number))
        assert not has_adapters(loaded)
        atol = 1e-4 if method == "lora" else 0.0
        torch.testing.assert_close(answers(loaded), answers(policy), atol=atol, rtol=0)
        policy = loaded
    manifest = read_manifest(tmp_path / "1")
    assert manifest.provenance.parent == checkpoint_hash(tmp_path / "0")
    assert manifest.contract.hold_steps == ENV.hold_steps and manifest.heads_trained == ("token",)
    assert ("lora_adapter/adapter_model.safetensors" in manifest.files) == (second == "lora")


def test_the_adapter_directory_is_peft_s_own_format(tmp_path: Path) -> None:
    """Catches an adapter that others cannot put on the parent's weights."""
    save_policy(tmp_path / "base", fresh(), env=ENV, stage="sft")
    trained = train(apply_lora(load_policy(tmp_path / "base"), LORA, seed=3))
    save_policy(tmp_path / "lora", trained, stage="sft")
    adapter = tmp_path / "lora" / "lora_adapter"
    base = load_policy(tmp_path / "base")
    inject_adapter_in_model(PeftLoraConfig.from_pretrained(adapter), base)
    set_peft_model_state_dict(base, load_file(adapter / "adapter_model.safetensors"))
    assert torch.equal(answers(base), answers(trained))


def test_adapters_are_applied_once() -> None:
    """Catches adapters on adapters."""
    vla = apply_lora(fresh(), LORA, seed=3)
    with pytest.raises(ValueError, match="already"):
        apply_lora(vla, LORA, seed=3)


def test_a_checkpoint_that_was_torn_is_not_loaded(tmp_path: Path) -> None:
    """Catches weights that are read before their hash is checked."""
    save_policy(tmp_path / "checkpoint", fresh(), env=ENV, stage="sft")
    path = tmp_path / "checkpoint" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="torn or edited"):
        load_policy(tmp_path / "checkpoint")


def test_a_first_checkpoint_needs_the_environment(tmp_path: Path) -> None:
    """Catches a contract that does not say for how long an action is held."""
    with pytest.raises(ValueError, match="environment"):
        save_policy(tmp_path / "checkpoint", fresh(), stage="sft")
    assert list(tmp_path.iterdir()) == []

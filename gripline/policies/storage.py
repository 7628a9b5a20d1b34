"""Policies from nothing, into checkpoint directories, and back.

Files beside `manifest.json`: `model.safetensors` (full weights, adapters merged), `architecture.json`,
`tokenizer.json`, `statistics.json`, and for a policy with adapters `lora_adapter/` in PEFT's format.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file

from gripline.checkpoint import Contract, Manifest, Provenance, checkpoint_hash, new_checkpoint, read_manifest
from gripline.config import EnvConfig, PolicyConfig
from gripline.errors import UserError
from gripline.policies.actions import ActionStatistics
from gripline.policies.architecture import Architecture, tiny
from gripline.policies.lora import has_adapters, merged_copy
from gripline.policies.tokenizer import TextEncoder, word_tokenizer
from gripline.policies.vla import VLA
from gripline.types import EnvSpec

WEIGHTS_FILE = "model.safetensors"
ARCHITECTURE_FILE = "architecture.json"
STATISTICS_FILE = "statistics.json"
ADAPTER_DIRECTORY = "lora_adapter"


class Statistics(BaseModel):
    """`statistics.json`: the bounds that normalise actions and proprioception."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: ActionStatistics
    proprio: ActionStatistics


def fresh_policy(config: PolicyConfig, env_spec: EnvSpec, *, instructions: Sequence[str], seed: int) -> VLA:
    """See `gripline.policies.build_policy`."""
    if config.preset != "tiny":
        raise UserError("", "policy.preset", f"{config.preset!r} has no fresh weights", "give a checkpoint with --from")
    tokenizer = word_tokenizer(instructions)
    architecture = tiny(config, env_spec, vocab_size=tokenizer.get_vocab_size())
    vla = seeded_vla(architecture, TextEncoder(tokenizer, architecture.text), seed=seed)
    vla.set_action_statistics(ActionStatistics.between(env_spec.action_low_A, env_spec.action_high_A))
    vla.contract = contract_of(architecture, env_spec)
    return vla


def contract_of(architecture: Architecture, env_spec: EnvSpec) -> Contract:
    """What a policy of this architecture sees and does in this environment."""
    return Contract(
        suite=env_spec.suite,
        cameras=env_spec.cameras,
        image_size_px=architecture.image_size_px,
        proprio_dim=architecture.proprio_dim,
        action_dim=architecture.action_dim,
        action_low_A=env_spec.action_low_A,
        action_high_A=env_spec.action_high_A,
        num_actions=architecture.num_actions,
        num_bins=architecture.num_bins,
    )


def seeded_vla(architecture: Architecture, tokenizer: TextEncoder, *, seed: int) -> VLA:
    """A VLA whose random weights depend on `seed` alone; global generators are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VLA(architecture, tokenizer)


def vla_with_weights(architecture: Architecture, tokenizer: TextEncoder, weights: Mapping[str, torch.Tensor]) -> VLA:
    """A VLA that owns copies of these weights. Nothing is initialised in vain: a 7B policy needs its memory once."""
    with torch.device("meta"):
        vla = VLA(architecture, tokenizer)
    vla.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, assign=True)
    vla.llm.rotary_emb = type(vla.llm.rotary_emb)(vla.llm.config)  # its frequencies are computed, not stored
    return vla


def write_policy(directory: Path, vla: VLA, provenance: Provenance, env: EnvConfig | None) -> str:
    """See `gripline.policies.save_policy`."""
    if vla.contract is None:
        raise ValueError("the policy has no contract: it was not made for an environment")
    contract = vla.contract if env is None else vla.contract.model_copy(update={"hold_steps": env.hold_steps})
    if contract.hold_steps is None:
        raise ValueError("a first checkpoint needs the environment's configuration")
    manifest = Manifest(
        policy=vla.architecture.name, contract=contract, heads_trained=vla.heads_trained, provenance=provenance
    )
    with new_checkpoint(directory, manifest) as temporary:
        _write_files(temporary, vla)
    return checkpoint_hash(directory)


def read_policy(directory: Path, *, device: str = "cpu") -> VLA:
    """See `gripline.policies.load_policy`."""
    manifest = read_manifest(directory)
    architecture = Architecture.model_validate_json((directory / ARCHITECTURE_FILE).read_bytes())
    statistics = Statistics.model_validate_json((directory / STATISTICS_FILE).read_bytes())
    vla = vla_with_weights(
        architecture, TextEncoder.load(directory, architecture.text), load_file(directory / WEIGHTS_FILE)
    )
    vla.set_action_statistics(statistics.action)
    vla.set_proprio_statistics(statistics.proprio)
    vla.heads_trained = manifest.heads_trained
    vla.contract = manifest.contract
    return vla.to(device)


def _write_files(directory: Path, vla: VLA) -> None:
    (directory / ARCHITECTURE_FILE).write_text(vla.architecture.model_dump_json(indent=1), encoding="utf-8")
    statistics = Statistics(action=vla.action_statistics, proprio=vla.proprio_statistics)
    (directory / STATISTICS_FILE).write_text(statistics.model_dump_json(indent=1), encoding="utf-8")
    vla.tokenizer.save(directory)
    full = vla
    if has_adapters(vla):
        from peft import get_peft_model_state_dict  # its import takes seconds, and most policies have no adapters

        full = merged_copy(vla)
        (directory / ADAPTER_DIRECTORY).mkdir()
        _save_tensors(directory / ADAPTER_DIRECTORY / "adapter_model.safetensors", get_peft_model_state_dict(vla))
        config = vla.peft_config["default"].to_dict()  # type: ignore[union-attr, index]
        text = json.dumps(config, indent=1, default=sorted)
        (directory / ADAPTER_DIRECTORY / "adapter_config.json").write_text(text, encoding="utf-8")
    _save_tensors(directory / WEIGHTS_FILE, full.state_dict())


def _save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)

"""Low-rank adapters (Hu et al. 2021) on every linear layer, through PEFT.

Adapters live inside the VLA, so it goes on being a VLA. The contract between stages: a checkpoint always holds full,
merged weights and needs no adapter to be used; a LoRA stage adds its adapter beside them for those who want it. So SFT
and RL may each be full or LoRA in any order, and a LoRA stage always starts with new adapters on merged weights.
"""

import copy

import torch
from torch import nn

from gripline.config import LoraConfig
from gripline.policies.towers import FusedVitFeatures
from gripline.policies.vla import VLA

_OUTPUT_LAYER = "head.lm_head"
"""32,064 rows of which 256 are read: it keeps its weights, as in OpenVLA-OFT's adapters."""


def apply_lora(vla: VLA, config: LoraConfig, *, seed: int) -> VLA:
    """Freeze the policy and add trainable adapters, in place. Until trained, logits are unchanged (B starts at zero).

    seed: for the adapters' A matrices; global generators are left alone.
    Raises ValueError on a policy that has adapters.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import inject_adapter_in_model

    if has_adapters(vla):
        raise ValueError("the policy has adapters already")
    targets = [
        name
        for name, module in vla.named_modules()
        if isinstance(module, nn.Linear) and name != _OUTPUT_LAYER and not name.startswith(_unused_parts(vla))
    ]
    peft_config = PeftLoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=targets, bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(peft_config, vla)
    return vla


def has_adapters(vla: VLA) -> bool:
    return hasattr(vla, "peft_config")


def _unused_parts(vla: VLA) -> tuple[str, ...]:
    """Name prefixes of modules that are stored and never computed."""
    if not isinstance(vla.tower, FusedVitFeatures):
        return ()
    last = {"dino": len(vla.tower.dino.blocks) - 1, "siglip": len(vla.tower.siglip.blocks) - 1}
    return ("tower.siglip.attn_pool.", *(f"tower.{name}.blocks.{index}." for name, index in last.items()))


def merged_copy(vla: VLA) -> VLA:
    """A VLA of its own without adapters, whose weights include them; the merge is computed in float32."""
    from peft.tuners.lora import LoraLayer

    merged = copy.deepcopy(vla)
    for name, module in list(merged.named_modules()):
        if isinstance(module, LoraLayer):
            base = module.get_base_layer()
            dtype = base.weight.dtype
            base.weight.data = (base.weight.data.float() + module.get_delta_weight("default").float()).to(dtype)
            parent_name, _, child = name.rpartition(".")
            setattr(merged.get_submodule(parent_name), child, base)
    del merged.peft_config
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return merged

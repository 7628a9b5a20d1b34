"""The policy network: images and an instruction in, logits over action tokens out, all action tokens at once.

OpenVLA-OFT's architecture (Kim, Finn, Liang 2025, section IV: parallel decoding with bidirectional attention) as one
core; `gripline.policies.architecture` names the parts and describes the two sequence layouts.
Shapes: M visual tokens of all cameras, D width, S sequence; the rest as in `gripline.types`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaConfig, LlamaModel

from gripline.checkpoint import Contract
from gripline.policies.actions import ActionStatistics, normalised_from_tokens, tokens_from_normalised
from gripline.policies.architecture import Architecture, FlattenProjector, Llama, MlpProjector, SmoothHead, TokenHead
from gripline.policies.tokenizer import TextEncoder
from gripline.policies.towers import ConvFeatures, build_tower

STOP_ID = 2
"""Llama's end-of-text token; closes a sequence of layout 'openvla'."""


class _FewRowsLinear(nn.Linear):
    """A linear layer for inputs whose rows are the batch alone: (W x^T)^T, on at least 16 rows.

    BLAS chooses its kernel by the number of rows, so the last bits would depend on the batch size: seen below 16 rows
    on AVX-512, below 12 on AVX2. Empty rows cost little here, because reading the weights is what takes the time.
    """

    MIN_ROWS = 16

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, self.in_features)
        missing = max(0, self.MIN_ROWS - len(rows))
        padded = F.pad(rows, (0, 0, 0, missing)) if missing else rows
        answers = (self.weight @ padded.T)[:, : len(rows)].T + self.bias
        return answers.reshape(*input.shape[:-1], self.out_features)


class _Flatten(nn.Module):
    """(B, N, M', F) -> (B, N * num_tokens, D), each camera's whole feature map through one linear layer."""

    def __init__(self, config: FlattenProjector, in_dim: int, width: int) -> None:
        super().__init__()
        self.num_tokens = config.num_tokens
        self.linear = _FewRowsLinear(in_dim, config.num_tokens * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        batch, cameras = features.shape[:2]
        tokens = self.linear(features.flatten(2)).reshape(batch, cameras * self.num_tokens, -1)
        return cast(Tensor, self.norm(tokens))


class _Mlp(nn.Module):
    """(B, N, M', F) -> (B, N * M', D), each patch by itself."""

    def __init__(self, config: MlpProjector, in_dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_dim, config.hidden_factor * in_dim)
        self.fc2 = nn.Linear(config.hidden_factor * in_dim, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features.flatten(1, 2)))))))


class _Proprio(nn.Module):
    """(B, P) -> (B, 1, D): proprioception as one token."""

    def __init__(self, proprio_dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = _FewRowsLinear(proprio_dim, width)
        self.fc2 = _FewRowsLinear(width, width)

    def forward(self, proprio_BP: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(F.gelu(self.fc1(proprio_BP)))[:, None])


class _Smooth(nn.Module):
    """Cosine features of the bin's position; the features' weights are what the network answers."""

    def __init__(self, config: SmoothHead, width: int, num_bins: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, config.num_features)
        position_V = (torch.arange(num_bins, dtype=torch.float32) + 0.5) / num_bins
        order_F = torch.arange(1, config.num_features + 1, dtype=torch.float32)
        self.basis_FV: Tensor
        self.register_buffer("basis_FV", torch.cos(math.pi * order_F[:, None] * position_V))

    def forward(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.linear(hidden)) @ self.basis_FV


class _Token(nn.Module):
    """The last `num_bins` text ids of the output layer; id `action_vocab_size - 1` is the lowest action, token 0."""

    def __init__(self, config: TokenHead, llm: Llama, num_bins: int) -> None:
        super().__init__()
        self.rows = slice(config.action_vocab_size - num_bins, config.action_vocab_size)
        self.lm_head = nn.Linear(llm.width, llm.vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.lm_head.weight[self.rows]).flip(-1)


def _llama(config: Llama) -> LlamaModel:
    return LlamaModel(
        LlamaConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            intermediate_size=config.mlp_width,
            vocab_size=config.vocab_size,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.max_positions,
            initializer_range=config.init_std,
            pad_token_id=None,
            use_cache=False,
            is_causal=False,
            attn_implementation="sdpa",
        )
    )


class VLA(nn.Module):
    """Vision-language-action policy. Weights are random until a checkpoint or training fills them.

    Beside weights it owns what turns the world into numbers and back: the tokenizer, the statistics of actions and
    proprioception, and (in the tower) the mean image; all of it travels with the checkpoint.
    """

    def __init__(self, architecture: Architecture, tokenizer: TextEncoder) -> None:
        super().__init__()
        self.architecture = architecture
        self.tokenizer = tokenizer
        self.heads_trained: tuple[str, ...] = ()
        """Heads that training has touched: 'token' after SFT or RL; a fresh policy has none."""
        self.contract: Contract | None = None
        """The environment that the policy is made for; None where it was built from an architecture alone."""
        width = architecture.llm.width
        self.tower = build_tower(
            architecture.tower, image_size_px=architecture.image_size_px, num_cameras=architecture.num_cameras
        )
        self.projector = (
            _Flatten(architecture.projector, self.tower.out_dim, width)
            if isinstance(architecture.projector, FlattenProjector)
            else _Mlp(architecture.projector, self.tower.out_dim, width)
        )
        self.proprio_projector = _Proprio(architecture.proprio_dim, width) if architecture.proprio_dim else None
        self.llm = _llama(architecture.llm)
        self.action_slots = (
            nn.Parameter(torch.randn(architecture.num_action_tokens, width) * architecture.llm.init_std)
            if architecture.layout == "slots"
            else None
        )
        self.head = (
            _Smooth(architecture.head, width, architecture.num_bins)
            if isinstance(architecture.head, SmoothHead)
            else _Token(architecture.head, architecture.llm, architecture.num_bins)
        )
        self.action_statistics = _identity(architecture.action_dim)
        self.proprio_statistics = _identity(architecture.proprio_dim)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def set_action_statistics(self, statistics: ActionStatistics) -> None:
        """Bounds of the demonstrations' actions. Raises ValueError where the dimension differs."""
        if statistics.dim != self.architecture.action_dim:
            raise ValueError(f"statistics of {statistics.dim} action dimensions for {self.architecture.action_dim}")
        self.action_statistics = statistics

    def set_proprio_statistics(self, statistics: ActionStatistics) -> None:
        """Bounds of the demonstrations' proprioception. Raises ValueError where the dimension differs."""
        if statistics.dim != self.architecture.proprio_dim:
            raise ValueError(f"statistics of {statistics.dim} proprio dimensions for {self.architecture.proprio_dim}")
        self.proprio_statistics = statistics

    @torch.no_grad()
    def set_image_mean(self, images_MNHWC: np.ndarray) -> None:
        """Remember the mean of M standardised images (uint8) per camera. Without effect where the tower uses none."""
        if isinstance(self.tower, ConvFeatures):
            images = torch.from_numpy(images_MNHWC).to(self.device)
            total = torch.zeros_like(self.tower.mean_image_NCHW, dtype=torch.float64)
            for start in range(0, len(images), 256):
                total += self.tower.standardised(images[start : start + 256]).sum(0, dtype=torch.float64)
            self.tower.mean_image_NCHW.copy_(total / len(images))

    def encode_text(self, instructions: list[str]) -> tuple[Tensor, Tensor]:
        """`tokens_BL` int64 and `mask_BL` bool of fixed length. Raises UserError on an instruction that is too long."""
        ids_BL, mask_BL = self.tokenizer.encode(instructions)
        return torch.from_numpy(ids_BL).to(self.device), torch.from_numpy(mask_BL).to(self.device)

    def encode_actions(self, actions_BKA: np.ndarray) -> np.ndarray:
        """Tokens 0…V-1 of actions in the environment's units; int64, same shape."""
        normalised = self.action_statistics.normalise(np.asarray(actions_BKA))
        return tokens_from_normalised(normalised, self.architecture.num_bins)

    def decode_actions(self, tokens_BKA: np.ndarray) -> np.ndarray:
        """Actions in the environment's units, float32, same shape."""
        normalised = normalised_from_tokens(np.asarray(tokens_BKA), self.architecture.num_bins)
        actions: np.ndarray = self.action_statistics.unnormalise(normalised).astype(np.float32)
        return actions

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The policy as it was before `apply_lora`: the reference of a KL term, at no memory."""
        from peft.tuners.lora import LoraLayer

        layers = [module for module in self.modules() if isinstance(module, LoraLayer)]
        for layer in layers:
            layer.enable_adapters(enabled=False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(enabled=True)

    def forward(self, images_BNHWC: Tensor, proprio_BP: Tensor, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """`logits_BKAV` float32.

        images_BNHWC uint8; proprio_BP float32 in the environment's units (unread where the architecture has no proprio
        token); tokens_BL, mask_BL from `encode_text`.
        """
        num_answers = self.architecture.num_action_tokens
        hidden = self.action_hidden(images_BNHWC, proprio_BP, tokens_BL, mask_BL)[:, :num_answers]
        shape = (len(hidden), self.architecture.num_actions, self.architecture.action_dim, self.architecture.num_bins)
        # Contiguous: on strided input F.linear's kernel (so the last bits) depends on whether the weight is trainable.
        return cast(Tensor, self.head(hidden.contiguous())).float().reshape(shape)

    def action_hidden(self, images_BNHWC: Tensor, proprio_BP: Tensor, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Last hidden states (B, K*A, D) that the head reads; layout 'openvla' adds one more, which answers </s>."""
        embeds_BSD, mask_BS = self.embed(images_BNHWC, proprio_BP, tokens_BL, mask_BL)
        hidden_BSD = self.run_llm(embeds_BSD, mask_BS)
        num_answers = self.architecture.num_action_tokens
        if self.architecture.layout == "slots":
            return hidden_BSD[:, -num_answers:]
        num_visual = embeds_BSD.shape[1] - tokens_BL.shape[1] - num_answers - 1
        last_text_B = num_visual + mask_BL.sum(1) - 1
        first_B1D = hidden_BSD[torch.arange(len(hidden_BSD), device=hidden_BSD.device), last_text_B][:, None]
        return torch.cat([first_B1D, hidden_BSD[:, -num_answers - 1 : -1]], dim=1)

    def embed(
        self, images_BNHWC: Tensor, proprio_BP: Tensor, tokens_BL: Tensor, mask_BL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The input sequence (B, S, D) in the layout's order, and which positions are real (B, S)."""
        words_BLD = self.llm.embed_tokens(tokens_BL)
        batch, _, width = words_BLD.shape
        parts = [words_BLD[:, :1], self.projector(self.tower(images_BNHWC)).to(words_BLD.dtype)]
        if self.proprio_projector is not None:
            parts.append(self.proprio_projector(self._normalised_proprio(proprio_BP).to(words_BLD.dtype)))
        num_before = sum(part.shape[1] for part in parts)
        if self.action_slots is not None:
            parts += [words_BLD[:, 1:], self.action_slots.expand(batch, -1, -1)]
        else:
            slots = words_BLD.new_zeros(batch, self.architecture.num_action_tokens, width)
            stop = self.llm.embed_tokens(tokens_BL.new_full((batch, 1), STOP_ID))
            parts += [words_BLD[:, 1:], slots, stop]
        embeds_BSD = torch.cat(parts, dim=1)
        num_after = embeds_BSD.shape[1] - num_before - mask_BL.shape[1] + 1
        mask_BS = torch.cat(
            [mask_BL.new_ones(batch, num_before), mask_BL[:, 1:], mask_BL.new_ones(batch, num_after)], dim=1
        )
        return embeds_BSD, mask_BS

    def run_llm(self, embeds_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """Bidirectional attention over all real positions; hidden states after the final norm."""
        positions = None
        if self.architecture.layout == "openvla":
            positions = (mask_BS.long().cumsum(1) - 1).clamp(min=0)
        batch, length = mask_BS.shape
        mask_B1SS = mask_BS[:, None, None, :].expand(batch, 1, length, length)
        output = self.llm(inputs_embeds=embeds_BSD, attention_mask=mask_B1SS, position_ids=positions, use_cache=False)
        return cast(Tensor, output.last_hidden_state)

    def _normalised_proprio(self, proprio_BP: Tensor) -> Tensor:
        statistics = self.proprio_statistics
        low, high = proprio_BP.new_tensor(statistics.low), proprio_BP.new_tensor(statistics.high)
        return (2 * (proprio_BP - low) / (high - low + 1e-8) - 1).clamp(-1, 1)


def _identity(dim: int) -> ActionStatistics:
    return ActionStatistics.between((-1.0,) * dim, (1.0,) * dim)

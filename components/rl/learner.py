"""The learner: one policy, one optimizer, one device. It knows neither Ray nor the tracker.

Everything random is drawn from (seed, iteration, epoch), so a resumed run shuffles as an uninterrupted one does.
Shape letters: M chunks of a minibatch, U chunks of an update; N H W C, P, K, A, L as in gripline.types.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gripline.algorithms.grpo import LossInputs, chunk_weights, policy_loss
from gripline.config import RlConfig
from gripline.policies import load_policy
from gripline.policies.inference import token_logprobs
from gripline.policies.lora import apply_lora, merged_copy
from gripline.types import Trajectory


@dataclass(frozen=True)
class Batch:
    """One update's chunks, flattened over episodes; in the memory of the machine."""

    images_UNHWC: Tensor
    proprio_UP: Tensor
    text_UL: Tensor
    text_mask_UL: Tensor
    tokens_UKA: Tensor
    behaviour_logprobs_UKA: Tensor
    advantages_U: Tensor
    weights_U: Tensor

    def __len__(self) -> int:
        return len(self.advantages_U)

    def rows(self, index_M: Tensor, device: str) -> "Batch":
        """The chunks at these positions, on a device."""
        return Batch(*(getattr(self, name)[index_M].to(device) for name in self.__dataclass_fields__))


class Learner:
    """Holds the trained policy, its frozen reference where a KL is asked for, and the optimizer."""

    def __init__(self, policy_dir: Path, config: RlConfig, *, seed: int, device: str = "cpu") -> None:
        self._config = config
        self._seed = seed
        self._device = device
        base = load_policy(policy_dir)  # to the CPU: there new adapters are the same whatever the device
        self.vla = (apply_lora(base, config.lora, seed=seed) if config.method == "lora" else base).to(device)
        needs_reference = config.kl_coef > 0 and config.method == "full"
        self._reference = load_policy(policy_dir, device=device).eval() if needs_reference else None
        if config.freeze_tower:
            base.tower.requires_grad_(False)
        self._trainable = [parameter for parameter in self.vla.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._trainable, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.999), foreach=True
        )
        self.has_updated = False
        self.vla.eval()  # no dropout anywhere: behaviour and learner must compute the same log-probs

    def batch(self, trajectories: list[Trajectory], advantages: list[float]) -> Batch:
        """Flatten episodes into chunks; every chunk carries its episode's advantage and weight."""
        lengths = [len(trajectory.tokens_TKA) for trajectory in trajectories]
        texts = self.vla.encode_text([trajectory.instruction for trajectory in trajectories])
        text_EL, mask_EL = (part.cpu() for part in texts)
        repeats = torch.tensor(lengths)
        return Batch(
            images_UNHWC=torch.from_numpy(np.concatenate([t.images_TNHWC for t in trajectories])),
            proprio_UP=torch.from_numpy(np.concatenate([t.proprio_TP for t in trajectories])),
            text_UL=text_EL.repeat_interleave(repeats, dim=0),
            text_mask_UL=mask_EL.repeat_interleave(repeats, dim=0),
            tokens_UKA=torch.from_numpy(np.concatenate([t.tokens_TKA for t in trajectories])).long(),
            behaviour_logprobs_UKA=torch.from_numpy(np.concatenate([t.logprobs_TKA for t in trajectories])).float(),
            advantages_U=torch.tensor(advantages).repeat_interleave(repeats),
            weights_U=torch.from_numpy(chunk_weights(lengths, loss_mean=self._config.loss_mean)),
        )

    @torch.no_grad()
    def logprob_gap(self, batch: Batch, *, num_chunks: int = 512) -> float:
        """Largest |behaviour - recomputed| log-prob over the first chunks: must be ~0 before the first update."""
        part = batch.rows(torch.arange(min(num_chunks, len(batch))), self._device)
        gap = (
            token_logprobs(self._logits(part), part.tokens_UKA, self._config.temperature) - part.behaviour_logprobs_UKA
        )
        return float(gap.abs().max())

    def update(self, batch: Batch, *, iteration: int) -> dict[str, float]:
        """All epochs over one update's chunks. Returns means over minibatches."""
        config = self._config
        lr = self.learning_rate(iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        sums: dict[str, float] = {}
        num_minibatches = 0
        for index_M in self._minibatches(len(batch), iteration):
            part = batch.rows(index_M, self._device)
            loss, metrics = self._loss(part, scale=len(batch) / len(index_M))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships it without types
            norm = torch.nn.utils.clip_grad_norm_(self._trainable, config.max_grad_norm, error_if_nonfinite=True)
            self.optimizer.step()
            metrics |= {"loss": float(loss.detach()), "grad_norm": float(norm)}
            sums = {name: sums.setdefault(name, 0.0) + value for name, value in metrics.items()}
            num_minibatches += 1
        self.has_updated = True
        return {name: value / num_minibatches for name, value in sums.items()} | {"lr": lr, "chunks": float(len(batch))}

    def learning_rate(self, iteration: int) -> float:
        """Linear warm-up, then cosine from lr to lr * lr_final_fraction over the run's iterations."""
        config = self._config
        if iteration < config.warmup_iterations:
            return config.lr * (iteration + 1) / (config.warmup_iterations + 1)
        share = min(iteration / max(config.iterations - 1, 1), 1.0)
        fraction = config.lr_final_fraction + (1 - config.lr_final_fraction) * 0.5 * (1 + math.cos(math.pi * share))
        return config.lr * fraction

    def weights(self) -> dict[str, np.ndarray]:
        """Full weights by name, adapters merged: what a policy server loads."""
        vla = merged_copy(self.vla) if self._config.method == "lora" else self.vla
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in vla.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Everything that an exact resume needs: raw weights (adapters unmerged) and the optimizer."""
        return {"model": self.vla.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.vla.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _minibatches(self, num_chunks: int, iteration: int) -> Iterator[Tensor]:
        for epoch in range(self._config.epochs):
            order = np.random.default_rng([self._seed, iteration, epoch]).permutation(num_chunks)
            parts = max(1, round(num_chunks / self._config.minibatch_chunks))
            yield from (torch.from_numpy(part) for part in np.array_split(order, parts))

    def _loss(self, part: Batch, *, scale: float) -> tuple[Tensor, dict[str, float]]:
        config = self._config
        logits_MKAV = self._logits(part)
        entropy_MKA = None
        if config.entropy_coef > 0:
            logp = torch.log_softmax(logits_MKAV / config.temperature, dim=-1)
            entropy_MKA = -(logp.exp() * logp).sum(-1)
        inputs = LossInputs(
            logprobs_MKA=token_logprobs(logits_MKAV, part.tokens_UKA, config.temperature),
            behaviour_logprobs_MKA=part.behaviour_logprobs_UKA,
            advantages_M=part.advantages_U,
            weights_M=part.weights_U * scale,
            reference_logprobs_MKA=self._reference_logprobs(part) if config.kl_coef > 0 else None,
            entropy_MKA=entropy_MKA,
        )
        return policy_loss(
            inputs,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            kl_coef=config.kl_coef,
            entropy_coef=config.entropy_coef,
        )

    @torch.no_grad()
    def _reference_logprobs(self, part: Batch) -> Tensor:
        """Log-probs under the policy that RL started from; with LoRA that is the same network without its adapters."""
        without_adapters = self.vla.disable_adapter() if self._reference is None else nullcontext()
        with without_adapters:
            logits = self._logits(part, vla=self._reference)
        return token_logprobs(logits, part.tokens_UKA, self._config.temperature)

    def _logits(self, part: Batch, vla: Any = None) -> Tensor:
        logits: Tensor = (vla or self.vla)(part.images_UNHWC, part.proprio_UP, part.text_UL, part.text_mask_UL)
        return logits

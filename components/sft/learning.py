"""Supervised fine-tuning: token cross-entropy with neighbouring bins sharing a label, and light augmentation.

Shape letters: B batch, V bins; the rest as in gripline.types. Every batch is drawn from (seed, step) alone.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gripline.config import SftConfig
from gripline.demos.dataset import DemoSet


def soft_labels(num_bins: int, sigma_bins: float) -> Tensor:
    """Target distribution for each label, float32 (V, V): a Gaussian over neighbouring bins; sigma 0 is one-hot."""
    if sigma_bins == 0:
        return torch.eye(num_bins)
    bins_V = torch.arange(num_bins, dtype=torch.float32)
    return torch.softmax(-0.5 * ((bins_V[:, None] - bins_V[None, :]) / sigma_bins) ** 2, dim=-1)


def cross_entropy(logits_BKAV: Tensor, tokens_BKA: Tensor, targets_VV: Tensor) -> Tensor:
    """Mean over tokens of the cross-entropy with the (soft) label of each token."""
    logp_BKAV = torch.log_softmax(logits_BKAV, dim=-1)
    return -(targets_VV[tokens_BKA] * logp_BKAV).sum(-1).mean()


def augment(images_BNHWC: np.ndarray, config: SftConfig, rng: np.random.Generator) -> np.ndarray:
    """Shift each image by up to `shift_px` (edges repeated) and scale its brightness; uint8 in and out."""
    size = config.shift_px
    padded = np.pad(images_BNHWC, ((0, 0), (0, 0), (size, size), (size, size), (0, 0)), mode="edge")
    height, width = images_BNHWC.shape[2:4]
    out = np.empty_like(images_BNHWC)
    offsets = rng.integers(0, 2 * size + 1, size=(len(out), 2))
    gains = rng.uniform(*config.brightness, size=len(out)).astype(np.float32)
    for row, ((down, right), gain) in enumerate(zip(offsets, gains, strict=True)):
        part = padded[row, :, down : down + height, right : right + width]
        out[row] = np.clip(part * gain, 0, 255)
    return out


@dataclass
class SupervisedLearner:
    """A policy, its demonstrations and its optimizer. Batches are made on the CPU and go to the policy's device."""

    vla: Any
    train: DemoSet
    held_out: DemoSet
    config: SftConfig
    seed: int

    def __post_init__(self) -> None:
        self.tokens_FKA = torch.from_numpy(self.vla.encode_actions(self.train.actions_FKA))
        self.text_FL, self.mask_FL = (part.cpu() for part in self.vla.encode_text(self.train.texts))
        self.targets_VV = self._on_device(soft_labels(self.vla.architecture.num_bins, self.config.label_sigma_bins))
        trainable = [parameter for parameter in self.vla.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=self.config.lr, weight_decay=self.config.weight_decay)

    def steps(self, first: int) -> Iterator[tuple[int, dict[str, float]]]:
        """Train from step `first` on; yields (step, metrics) after each. Held-out loss every `eval_every` steps."""
        config = self.config
        for step in range(first, config.steps):
            lr = self.learning_rate(step)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            metrics = {"train/loss": self._step(step), "lr": lr}
            if (step + 1) % config.eval_every == 0 or step + 1 == config.steps:
                metrics |= self.held_out_metrics()
            yield step, metrics

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then cosine to zero."""
        config = self.config
        if step < config.warmup_steps:
            return config.lr * (step + 1) / config.warmup_steps
        share = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
        return config.lr * 0.5 * (1 + math.cos(math.pi * share))

    def _step(self, step: int) -> float:
        rng = np.random.default_rng([self.seed, step])
        rows = rng.integers(len(self.train), size=self.config.batch_size)
        index = torch.from_numpy(rows)
        images = self._on_device(torch.from_numpy(augment(self.train.images_FNHWC[rows], self.config, rng)))
        proprio = self._on_device(torch.from_numpy(self.train.proprio_FP[rows]))
        text, mask, tokens = (self._on_device(part[index]) for part in (self.text_FL, self.mask_FL, self.tokens_FKA))
        self.vla.train()
        device = self.vla.device
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
            torch.manual_seed(int(rng.integers(2**63)))  # dropout draws from torch's global generators
            logits = self.vla(images, proprio, text, mask)
        loss = cross_entropy(logits, tokens, self.targets_VV)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships it without types
        torch.nn.utils.clip_grad_norm_(self.vla.parameters(), 1.0, error_if_nonfinite=True)
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def held_out_metrics(self) -> dict[str, float]:
        """Loss on demonstrations never trained on, and the mean error of the greedy action in bins."""
        self.vla.eval()
        tokens_FKA = self._on_device(torch.from_numpy(self.vla.encode_actions(self.held_out.actions_FKA)))
        text_FL, mask_FL = self.vla.encode_text(self.held_out.texts)
        losses, errors = [], []
        for rows in torch.split(torch.arange(len(self.held_out)), 128):
            images = self._on_device(torch.from_numpy(self.held_out.images_FNHWC[rows.numpy()]))
            proprio = self._on_device(torch.from_numpy(self.held_out.proprio_FP[rows.numpy()]))
            logits = self.vla(images, proprio, text_FL[rows], mask_FL[rows])
            losses.append(float(cross_entropy(logits, tokens_FKA[rows], self.targets_VV)) * len(rows))
            errors.append(float((logits.argmax(-1) - tokens_FKA[rows]).abs().float().mean()) * len(rows))
        total = len(self.held_out)
        return {"held_out/loss": sum(losses) / total, "held_out/error_bins": sum(errors) / total}

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.vla.device)

    def state(self, step: int) -> dict[str, Any]:
        """Everything that an exact resume needs."""
        return {"step": step, "model": self.vla.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> int:
        """The inverse of `state`; returns the next step."""
        self.vla.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

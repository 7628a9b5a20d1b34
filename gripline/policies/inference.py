"""Acting with a policy: fixed batch shapes and keyed noise, so that an episode does not depend on who shares its batch.

Measured with torch 2.13 on CPU (float32, one thread): a row's result is bit-equal whatever its neighbours and the batch
size, from 4 rows upwards; 1 to 3 rows may take another kernel. So batches are padded to fixed sizes of at least 4, and
`make_policy` tests the policy on the machine at hand and keeps the sizes that agree with the largest. On GPUs kernels
depend on the shape in general: there the test may leave the largest size alone, and every batch is padded to it.
"""

from typing import cast

import numpy as np
import torch
from torch import Tensor

from gripline.policies.vla import VLA
from gripline.types import ActionBatch, Observation

BATCH_SIZES = (4, 8, 12, 16, 24, 32)


def token_logprobs(logits_BKAV: Tensor, tokens_BKA: Tensor, temperature: float) -> Tensor:
    """Log-probability of each token under softmax(logits / temperature); float32, (B, K, A), differentiable."""
    logprobs_BKAV = torch.log_softmax(logits_BKAV.float() / temperature, dim=-1)
    return logprobs_BKAV.gather(-1, tokens_BKA[..., None])[..., 0]


def gumbel_noise(key: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """Standard Gumbel noise named by (noise seed, chunk index): the same numbers in every process, in any order."""
    uniform = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64))).random(shape)
    noise: np.ndarray = -np.log(-np.log(np.maximum(uniform, np.finfo(np.float64).tiny)))
    return noise


class TorchPolicy:
    """A VLA behind the `gripline.types.Policy` protocol. Acting puts it into evaluation mode."""

    def __init__(self, vla: VLA, *, batch_sizes: tuple[int, ...] = BATCH_SIZES) -> None:
        if not batch_sizes or min(batch_sizes) < 4:
            raise ValueError(f"batch sizes {batch_sizes}: each must be at least 4")
        self.vla = vla
        self.num_actions = vla.architecture.num_actions
        self.action_dim = vla.architecture.action_dim
        self.batch_sizes = tuple(sorted(batch_sizes))
        self._text: dict[str, tuple[Tensor, Tensor]] = {}

    def act(
        self, observations: list[Observation], *, noise_keys: list[tuple[int, int]] | None, temperature: float
    ) -> ActionBatch:
        """Choose a chunk for each observation. Raises ValueError where keys and observations differ in number."""
        if not observations or temperature <= 0 or (noise_keys is not None and len(noise_keys) != len(observations)):
            raise ValueError(f"{len(observations)} observations, noise keys {noise_keys}, temperature {temperature}")
        largest = self.batch_sizes[-1]
        parts = []
        for start in range(0, len(observations), largest):
            keys = None if noise_keys is None else noise_keys[start : start + largest]
            parts.append(self._act_padded(observations[start : start + largest], keys, temperature))
        tokens_BKA = np.concatenate([tokens for tokens, _ in parts])
        logprobs_BKA = np.concatenate([logprobs for _, logprobs in parts])
        return ActionBatch(tokens_BKA, self.vla.decode_actions(tokens_BKA), logprobs_BKA)

    def load_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Take over weights by name, as `Module.state_dict` has them; copied, to the policy's device."""
        self.vla.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})

    @torch.inference_mode()
    def logits_BKAV(self, observations: list[Observation]) -> Tensor:
        """Logits of at most one batch, padded rows included: (padded B, K, A, V)."""
        size = next(size for size in self.batch_sizes if size >= len(observations))
        rows = observations + [observations[-1]] * (size - len(observations))
        device = self.vla.device
        texts = [self._encoded(row.instruction) for row in rows]
        images_BNHWC = torch.from_numpy(np.stack([row.images_NHWC for row in rows])).to(device)
        proprio_BP = torch.from_numpy(np.stack([row.proprio_P for row in rows])).to(device)
        tokens_BL, mask_BL = (torch.cat(part).to(device) for part in zip(*texts, strict=True))
        if self.vla.training:
            self.vla.eval()
        return cast(Tensor, self.vla(images_BNHWC, proprio_BP, tokens_BL, mask_BL))

    def _act_padded(
        self, observations: list[Observation], noise_keys: list[tuple[int, int]] | None, temperature: float
    ) -> tuple[np.ndarray, np.ndarray]:
        logits_BKAV = self.logits_BKAV(observations)
        scores_BKAV = logits_BKAV.cpu().numpy().astype(np.float64) / temperature
        if noise_keys is not None:
            for row, key in enumerate(noise_keys):
                scores_BKAV[row] += gumbel_noise(key, scores_BKAV.shape[1:])
        tokens_BKA = scores_BKAV.argmax(-1)
        with torch.inference_mode():
            chosen = torch.from_numpy(tokens_BKA).to(logits_BKAV.device)
            logprobs_BKA = token_logprobs(logits_BKAV, chosen, temperature).cpu().numpy()
        return tokens_BKA[: len(observations)], logprobs_BKA[: len(observations)]

    def _encoded(self, instruction: str) -> tuple[Tensor, Tensor]:
        if instruction not in self._text:
            self._text[instruction] = self.vla.encode_text([instruction])
        return self._text[instruction]


def stable_batch_sizes(vla: VLA, batch_sizes: tuple[int, ...] = BATCH_SIZES) -> tuple[int, ...]:
    """The sizes at which every row is bit-equal to the same row in the largest, on this machine; the largest is one."""
    generator = np.random.Generator(np.random.Philox(key=0))
    architecture = vla.architecture
    side, largest = architecture.image_size_px, max(batch_sizes)
    rows = [
        Observation(
            generator.integers(0, 256, (architecture.num_cameras, side, side, 3), dtype=np.uint8),
            generator.standard_normal(architecture.proprio_dim).astype(np.float32),
            "" if index % 2 else "open the drawer",
        )
        for index in range(largest)
    ]
    expected = TorchPolicy(vla, batch_sizes=(largest,)).logits_BKAV(rows)

    def agrees(size: int) -> bool:
        policy = TorchPolicy(vla, batch_sizes=(size,))
        alone, company, turned = rows[1:2], rows[:size], rows[:size][::-1]
        return (
            torch.equal(policy.logits_BKAV(company), expected[:size])
            and torch.equal(policy.logits_BKAV(turned), expected[:size].flip(0))
            and torch.equal(policy.logits_BKAV(alone)[0], expected[1])
        )

    return tuple(size for size in sorted(batch_sizes) if size == largest or agrees(size))


def self_test(vla: VLA, *, batch_sizes: tuple[int, ...] = BATCH_SIZES) -> bool:
    """Are all the sizes stable on this machine?"""
    return stable_batch_sizes(vla, batch_sizes) == tuple(sorted(batch_sizes))


def make_policy(vla: VLA, *, batch_sizes: tuple[int, ...] = BATCH_SIZES) -> TorchPolicy:
    """A TorchPolicy that uses only the sizes proved stable; in the worst case every batch is padded to the largest."""
    return TorchPolicy(vla, batch_sizes=stable_batch_sizes(vla, batch_sizes))

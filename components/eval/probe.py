"""What the gate measures on a policy before RL: its weights, its answers as served and as learned from, its fit.

Torch is imported here, and where the gate calls; a probe is some thirty forward passes, on a CPU a matter of seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from gripline.checkpoint import Manifest
from gripline.config import EnvConfig, RlConfig
from gripline.demos.dataset import DemoSet
from gripline.policies import ActionStatistics
from gripline.policies.inference import token_logprobs
from gripline.policies.lora import apply_lora
from gripline.policies.storage import seeded_vla
from gripline.policies.vla import VLA
from gripline.rollout.messages import ServedPolicy
from gripline.stages import SftStage
from gripline.types import EpisodeRecord, Observation

EPISODES, CHUNKS = 4, 8
"""Recorded episodes that are replayed for their observations, and how far into each."""
FRAMES = 128
"""Held-out frames on which the fit is measured, spread over all of them."""
SEEDED = ("tiny",)
"""Policies whose weights before training follow from a seed."""


@dataclass(frozen=True)
class Recorded:
    """Chunks of an evaluation: what the policy saw, and what it was served to do."""

    observations: list[Observation]
    actions_BKA: np.ndarray


@dataclass(frozen=True)
class Weights:
    """What the weights alone say."""

    not_finite: tuple[str, ...]
    """Parameters that hold NaN or infinity."""
    untouched: tuple[str, ...]
    """Weight matrices that hold what the recorded seed initialises, bit for bit, though training should have changed
    them; of adapter training only the head's count. Empty where the seed is not recorded."""


@dataclass(frozen=True)
class Fit:
    """Errors on held-out demonstrations, as shares of the range of the demonstrated actions, means over dimensions."""

    error: float
    """Of the greedy actions of the policy as served, in the environment's units."""
    constant_error: float
    """Of the best constant action: the median over the demonstrations that were trained on."""

    @property
    def skill(self) -> float:
        """1: exact; 0: no better than a constant action."""
        return 1 - self.error / self.constant_error if self.constant_error > 0 else 0.0


def recorded_chunks(config: EnvConfig, records: Sequence[EpisodeRecord]) -> Recorded:
    """Replay the first chunks of a few episodes, one of each task in turn. Empty where none recorded its actions."""
    from gripline.rollout.standard import make_env_with

    by_task: dict[str, list[EpisodeRecord]] = {}
    for record in records:
        if record.actions_TKA and not record.error:
            by_task.setdefault(record.spec.task, []).append(record)
    rounds = range(max((len(own) for own in by_task.values()), default=0))
    in_turn = [own[index] for index in rounds for own in by_task.values() if index < len(own)]
    observations: list[Observation] = []
    actions: list[np.ndarray] = []
    env = make_env_with(config, None) if in_turn else None
    try:
        for record in in_turn[:EPISODES]:
            assert env is not None
            observation = env.reset(record.spec)
            for chunk_KA in np.array(record.actions_TKA[:CHUNKS], np.float32):
                observations.append(observation)
                actions.append(chunk_KA)
                step = env.step(chunk_KA)
                if step.success or step.truncated:
                    break
                observation = step.observation
    finally:
        if env is not None:
            env.close()
    return Recorded(observations, np.array(actions, np.float32))


def weights_of(vla: VLA, manifest: Manifest) -> Weights:
    """Look for weights that are not numbers, and for those that training never reached."""
    parameters = dict(vla.named_parameters())
    not_finite = tuple(name for name, value in parameters.items() if not bool(torch.isfinite(value).all()))
    trained = _training(manifest)
    if trained is None:
        return Weights(not_finite, ())
    before = dict(seeded_vla(vla.architecture, vla.tokenizer, seed=trained.seed).named_parameters())
    adapted = trained.sft.method == "lora"
    untouched = tuple(
        name
        for name, value in parameters.items()
        if value.ndim > 1 and (name.startswith("head.") or not adapted) and torch.equal(value.cpu(), before[name])
    )
    return Weights(not_finite, untouched)


def _training(manifest: Manifest) -> SftStage | None:
    """How SFT made it from a seed; None for what began with given weights, and where another version recorded it."""
    provenance = manifest.provenance
    if provenance.stage != "sft" or provenance.parent is not None or manifest.policy not in SEEDED:
        return None
    try:
        return SftStage.model_validate(provenance.config)
    except ValidationError:
        return None


@torch.no_grad()
def logits_of(vla: VLA, observations: Sequence[Observation]) -> Tensor:
    """What the network answers, all rows at once and unpadded, as a learner computes it: (B, K, A, V), on the CPU."""
    vla.eval()
    images_BNHWC = torch.from_numpy(np.stack([row.images_NHWC for row in observations])).to(vla.device)
    proprio_BP = torch.from_numpy(np.stack([row.proprio_P for row in observations])).to(vla.device)
    tokens_BL, mask_BL = vla.encode_text([row.instruction for row in observations])
    logits: Tensor = vla(images_BNHWC, proprio_BP, tokens_BL, mask_BL)
    return logits.cpu()


def entropy_share(logits_BKAV: Tensor) -> float:
    """Mean entropy of the answers, as a share of a uniform distribution's."""
    logp_BKAV = torch.log_softmax(logits_BKAV.float(), dim=-1)
    entropy = -(logp_BKAV.exp() * logp_BKAV).sum(-1).mean()
    return float(entropy) / float(np.log(logits_BKAV.shape[-1]))


def as_learned(vla: VLA, config: RlConfig, *, seed: int) -> VLA:
    """The network that RL's learner computes with before its first update: new adapters included, added in place."""
    return apply_lora(vla, config.lora, seed=seed) if config.method == "lora" else vla


def logprob_gap(
    served: ServedPolicy, learner_logits_BKAV: Tensor, observations: list[Observation], temperature: float
) -> float:
    """Largest |served - recomputed| log-prob of sampled tokens, on equal observations."""
    keys = [(0, index) for index in range(len(observations))]
    answer = served.act(observations, noise_keys=keys, temperature=temperature)
    own = token_logprobs(learner_logits_BKAV, torch.from_numpy(answer.tokens_BKA), temperature)
    return float((own - torch.from_numpy(answer.logprobs_BKA)).abs().max())


def replay_gap(vla: VLA, logits_BKAV: Tensor, actions_BKA: np.ndarray) -> float:
    """How much less likely than the network's own first choice the recorded greedy actions are to it, in nats: a mean
    over all tokens, 0 where the evaluation was served by this very policy.

    Dimensions that never varied in the demonstrations are left out: there an action does not tell its token.
    """
    logp_BKAV = torch.log_softmax(logits_BKAV.float(), dim=-1)
    # The two highest tokens mean the same action.
    logp_BKAV[..., -2:] = logp_BKAV[..., -2:].amax(-1, keepdim=True)
    chosen_BKA = logp_BKAV.gather(-1, torch.from_numpy(vla.encode_actions(actions_BKA))[..., None])[..., 0]
    varies_A = torch.tensor(vla.action_statistics.low) < torch.tensor(vla.action_statistics.high)
    gap_BKA = (logp_BKAV.amax(-1) - chosen_BKA)[..., varies_A]
    return float(gap_BKA.mean()) if gap_BKA.numel() else 0.0


def fit_of(served: ServedPolicy, demos: DemoSet) -> Fit:
    """How well the policy, as it is served, imitates demonstrations that it was not trained on."""
    train, held_out = demos.split(np.unique(demos.episode_F[demos.episode_F < 0]))
    rows = np.unique(np.linspace(0, len(held_out) - 1, FRAMES).astype(int))
    texts = held_out.texts
    observations = [Observation(held_out.images_FNHWC[row], held_out.proprio_FP[row], texts[row]) for row in rows]
    scale = ActionStatistics.of(train.actions_FKA)
    shown_RKA = scale.normalise(held_out.actions_FKA[rows])
    acted_RKA = scale.normalise(served.act(observations, noise_keys=None, temperature=1.0).actions_BKA)
    constant_KA = np.median(scale.normalise(train.actions_FKA), axis=0)
    return Fit(
        error=float(np.abs(acted_RKA - shown_RKA).mean()) / 2,
        constant_error=float(np.abs(constant_KA - shown_RKA).mean()) / 2,
    )

"""The tiny policy: its size, its eyes, its statistics, and how batches are padded."""

import numpy as np
import pytest
import torch
from torch import Tensor

from gripline.config import PolicyConfig, TinyConfig
from gripline.errors import UserError
from gripline.policies import ActionStatistics, build_policy
from gripline.policies.inference import TorchPolicy, gumbel_noise, make_policy, stable_batch_sizes, token_logprobs
from gripline.policies.towers import ConvFeatures
from gripline.policies.vla import VLA
from gripline.types import EnvSpec, Observation

ENV_SPEC = EnvSpec(
    suite="metaworld",
    tasks=("drawer-open-v3",),
    cameras=("front",),
    image_size_px=64,
    proprio_dim=4,
    action_dim=4,
    action_low_A=(-1.0, -1.0, -1.0, -1.0),
    action_high_A=(1.0, 1.0, 1.0, 1.0),
    control_hz=80.0,
    horizon_steps=112,
    success_means="the drawer is open",
)


def build(**sizes: object) -> VLA:
    config = PolicyConfig(tiny=TinyConfig.model_validate(sizes))
    return build_policy(config, ENV_SPEC, instructions=["open the drawer"], seed=1).eval()


def camera_images(count: int) -> np.ndarray:
    """Smooth pictures without extreme values, so that a gain of colour or light clips nothing."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 160, (count, 1, 8, 8, 3))
    return coarse.repeat(8, axis=2).repeat(8, axis=3).astype(np.uint8)


def observation(image_NHWC: np.ndarray) -> Observation:
    return Observation(image_NHWC, np.zeros(4, np.float32), "open the drawer")


def tower(vla: VLA) -> ConvFeatures:
    assert isinstance(vla.tower, ConvFeatures)
    return vla.tower


def test_size_is_that_of_a_tiny_policy() -> None:
    """Catches a default that is no longer fast on a laptop."""
    assert 0.5e6 < sum(parameter.numel() for parameter in build().parameters()) < 2e6


def test_sizes_come_from_the_configuration() -> None:
    """Catches a field of the configuration that is read by nobody."""
    vla = build(
        width=32, heads=2, depth=1, visual_tokens=3, cosine_features=5, tower_channels=(8, 16), max_text_tokens=7
    )
    assert vla.llm.config.num_hidden_layers == 1 and vla.llm.config.hidden_size == 32
    assert vla.head.linear.out_features == 5
    assert vla.projector.linear.out_features == 3 * 32 and vla.projector.linear.in_features == 32 * 16 * 16
    assert vla.encode_text([""])[0].shape == (1, 7)


def test_preset_7b_has_no_fresh_weights() -> None:
    """Catches a run that would train seven billion random parameters."""
    with pytest.raises(UserError, match=r"policy\.preset"):
        build_policy(PolicyConfig(preset="7b"), ENV_SPEC, instructions=[], seed=1)


@pytest.mark.parametrize("gain", [(0.5, 0.5, 0.5), (0.75, 1.0, 1.2)])
def test_a_global_gain_of_light_or_colour_cancels(gain: tuple[float, float, float]) -> None:
    """Catches the loss of what makes the policy robust: seen in features, against the difference of other pictures."""
    vla = build()
    images = camera_images(8)
    vla.set_image_mean(images)
    dimmed = np.rint(images * np.array(gain)).astype(np.uint8)
    with torch.no_grad():
        plain, changed = (vla.tower(torch.from_numpy(part)) for part in (images, dimmed))
    other = (plain - plain.roll(1, dims=0)).norm()
    assert (changed - plain).norm() < 0.05 * other


def test_mean_image_is_that_of_standardised_images() -> None:
    """Catches a mean of raw pixels, which would bring the brightness back."""
    vla, images = build(), camera_images(300)
    vla.set_image_mean(images)
    standardised = tower(vla).standardised(torch.from_numpy(images))
    torch.testing.assert_close(tower(vla).mean_image_NCHW, standardised.mean(0), atol=1e-5, rtol=0)
    assert "tower.mean_image_NCHW" in vla.state_dict()


def test_standardising_and_mean_image_can_be_switched_off() -> None:
    """Catches switches without effect."""
    images = torch.from_numpy(camera_images(2))
    raw = build(standardise="none", mean_image=False)
    torch.testing.assert_close(tower(raw).standardised(images), images.permute(0, 1, 4, 2, 3) / 255.0)
    before = raw.tower(images)
    raw.set_image_mean(images.numpy())
    assert torch.equal(raw.tower(images), before)


def test_statistics_of_another_dimension_are_refused() -> None:
    """Catches statistics of another robot."""
    with pytest.raises(ValueError, match="7 action dimensions for 4"):
        build().set_action_statistics(ActionStatistics.between((0.0,) * 7, (1.0,) * 7))


def test_statistics_are_measured_over_all_leading_dimensions() -> None:
    """Catches bounds per chunk position, and quantiles in place of extremes."""
    values = np.arange(202, dtype=np.float32).reshape(101, 1, 2)
    assert ActionStatistics.of(values) == ActionStatistics.between((0.0, 1.0), (200.0, 201.0))
    assert ActionStatistics.of(values, "q01_q99") == ActionStatistics.between((2.0, 3.0), (198.0, 199.0))


def test_a_dimension_that_never_varied_keeps_its_value() -> None:
    """Catches a division by zero and an unused gripper that moves when tokens are sampled."""
    vla = build()
    vla.set_action_statistics(ActionStatistics.between((-1.0, -1.0, -1.0, 0.3), (1.0, 1.0, 1.0, 0.3)))
    actions = np.full((1, 1, 4), 0.3, np.float32)
    assert vla.encode_actions(actions)[0, 0, 3] == 127  # the middle of 256 bins
    tokens = np.array([[[0, 0, 0, 0]], [[255, 255, 255, 255]]])
    np.testing.assert_allclose(vla.decode_actions(tokens)[:, 0, 3], 0.3, atol=1e-6)


def test_logprobs_by_hand() -> None:
    """Catches a temperature that multiplies and a gather along the wrong axis."""
    logits = torch.tensor([[[[0.0, 2.0 * np.log(3.0)]]]])
    assert token_logprobs(logits, torch.tensor([[[1]]]), 2.0).item() == pytest.approx(np.log(0.75), abs=1e-6)


def test_noise_is_gumbel_distributed() -> None:
    """Catches another distribution: mean is Euler's constant, variance pi^2 / 6."""
    noise = gumbel_noise((1, 2), (200_000,))
    assert noise.mean() == pytest.approx(0.5772, abs=0.01) and noise.var() == pytest.approx(np.pi**2 / 6, abs=0.03)


class _RowCounter(VLA):
    """A policy whose answers depend on the number of rows, as a kernel that is chosen by shape would make them."""

    def __init__(self, like: VLA) -> None:
        super().__init__(like.architecture, like.tokenizer)
        self.sizes: list[int] = []

    def forward(self, images_BNHWC: Tensor, proprio_BP: Tensor, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        self.sizes.append(len(images_BNHWC))
        logits = super().forward(images_BNHWC, proprio_BP, tokens_BL, mask_BL)
        return logits + 1e-3 * (len(images_BNHWC) < 16)


def test_unstable_batch_sizes_are_not_used() -> None:
    """Catches an evaluation whose numbers would depend on the number of workers."""
    vla = _RowCounter(build())
    assert stable_batch_sizes(vla) == (16, 24, 32)
    policy = make_policy(vla)
    vla.sizes.clear()
    rows = [observation(image) for image in camera_images(40)]
    policy.act(rows[:3], noise_keys=None, temperature=1.0)
    policy.act(rows, noise_keys=None, temperature=1.0)
    assert vla.sizes == [16, 32, 16]


def test_bad_calls_are_refused() -> None:
    """Catches a silently wrong pairing of rows and keys, and sizes too small to be stable."""
    vla = build()
    rows = [observation(image) for image in camera_images(2)]
    with pytest.raises(ValueError, match="batch sizes"):
        TorchPolicy(vla, batch_sizes=(1, 4))
    policy = TorchPolicy(vla)
    for keys, temperature in (([(1, 0)], 1.0), (None, 0.0)):
        with pytest.raises(ValueError, match="observations"):
            policy.act(rows, noise_keys=keys, temperature=temperature)
    with pytest.raises(ValueError, match="0 observations"):
        policy.act([], noise_keys=None, temperature=1.0)


def test_acting_switches_dropout_off() -> None:
    """Catches sampling noise from a policy left in training mode."""
    vla = build().train()
    TorchPolicy(vla).act([observation(camera_images(1)[0])], noise_keys=None, temperature=1.0)
    assert not vla.training

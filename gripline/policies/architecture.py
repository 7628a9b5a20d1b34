"""What a policy is made of: named parts with their sizes, as data. Imports no torch.

One core serves every preset: image tower(s) -> projector -> bidirectional Llama -> action head. A preset chooses the
parts; `architecture.json` in a checkpoint holds the result, so a checkpoint never depends on what a preset means today.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gripline.config import PolicyConfig
from gripline.types import EnvSpec


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ConvTower(_Part):
    """Stride-2 3x3 convolutions, then 1x1: learns from a handful of demonstrations where a ViT does not."""

    kind: Literal["conv"] = "conv"
    channels: tuple[int, ...]
    """Each halves the image's side."""
    out_channels: int
    standardise: Literal["none", "channel"]
    """'channel': every image loses its own per-channel mean and scale, so a global gain of light or colour cancels."""
    mean_image: bool
    """Subtract the mean of the (standardised) demonstration images, pixel by pixel: what is left is what moves."""


class Vit(_Part):
    """One vision transformer, patch 14. Defaults that differ between DINOv2 and SigLIP are spelt out by the preset."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    class_token: bool
    num_registers: int
    layer_scale: bool
    attention_pool: bool
    """The checkpoint carries a pooling head. It is stored and counted, never computed."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Pixels in 0…1 become (pixel - mean) / std."""


class FusedVitTower(_Part):
    """DINOv2 and SigLIP side by side; their patch features are concatenated along channels, DINOv2 first."""

    kind: Literal["fused_vit"] = "fused_vit"
    patch_px: int = 14
    dino: Vit
    siglip: Vit


class FlattenProjector(_Part):
    """The whole feature map, flattened, through one linear layer into a few visual tokens per camera."""

    kind: Literal["flatten"] = "flatten"
    num_tokens: int


class MlpProjector(_Part):
    """Each patch by itself through three linear layers with GELU (OpenVLA's fused-gelu-mlp)."""

    kind: Literal["mlp"] = "mlp"
    hidden_factor: int = Field(default=4, ge=1)
    """Width of the first hidden layer, in multiples of the tower's feature width."""


class Llama(_Part):
    """Dimensions of the language model; attention is always bidirectional."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    vocab_size: int
    norm_epsilon: float = 1e-6
    rope_theta: float = 10_000.0
    max_positions: int = 2048
    init_std: float = 0.02

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class SmoothHead(_Part):
    """Logits over the bins as a sum of cosines of the bin's position: neighbouring bins share strength."""

    kind: Literal["smooth"] = "smooth"
    num_features: int


class TokenHead(_Part):
    """The language model's own output layer; the bins are the last ids of the `action_vocab_size` text ids."""

    kind: Literal["token"] = "token"
    action_vocab_size: int = 32_000


class Text(_Part):
    """How an instruction becomes token ids; the vocabulary itself is in `tokenizer.json`."""

    prompt: str = "{instruction}"
    max_tokens: int
    """Every text is padded to this length; a longer one is an error."""
    pad_id: int = 0
    final_id: int | None = None
    """Appended where a text does not end in it."""


class Architecture(_Part):
    """A complete policy.

    layout: how a sequence is laid out and read.
      'slots':   [BOS][visual][proprio][words, padded][K*A learned action slots]; positions are fixed, slot i answers
                 for action token i.
      'openvla': [BOS][visual][proprio][rest of prompt][K*A zero embeddings][</s>]; positions count real tokens only,
                 answers are shifted by one: the last prompt token answers for action token 0 (OpenVLA-OFT, section IV).
    """

    name: str
    image_size_px: int
    num_cameras: int = Field(ge=1)
    proprio_dim: int = Field(default=0, ge=0)
    """0: the policy does not see proprioception."""
    num_actions: int = Field(ge=1)
    action_dim: int = Field(ge=1)
    num_bins: int = Field(default=256, ge=2)
    layout: Literal["slots", "openvla"]
    tower: Annotated[ConvTower | FusedVitTower, Field(discriminator="kind")]
    projector: Annotated[FlattenProjector | MlpProjector, Field(discriminator="kind")]
    llm: Llama
    head: Annotated[SmoothHead | TokenHead, Field(discriminator="kind")]
    text: Text

    @property
    def num_action_tokens(self) -> int:
        return self.num_actions * self.action_dim


def tiny(config: PolicyConfig, env_spec: EnvSpec, *, vocab_size: int) -> Architecture:
    """About two million parameters: learns three tasks from a few demonstrations on one CPU core."""
    sizes = config.tiny
    return Architecture(
        name="tiny",
        image_size_px=env_spec.image_size_px,
        num_cameras=len(env_spec.cameras),
        proprio_dim=env_spec.proprio_dim if config.use_proprio else 0,
        num_actions=config.num_actions,
        action_dim=env_spec.action_dim,
        layout="slots",
        tower=ConvTower(
            channels=sizes.tower_channels,
            out_channels=sizes.tower_out_channels,
            standardise=sizes.standardise,
            mean_image=sizes.mean_image,
        ),
        projector=FlattenProjector(num_tokens=sizes.visual_tokens),
        llm=Llama(
            width=sizes.width,
            depth=sizes.depth,
            heads=sizes.heads,
            mlp_width=sizes.mlp_width,
            vocab_size=vocab_size,
            init_std=sizes.width**-0.5,
        ),
        head=SmoothHead(num_features=sizes.cosine_features),
        text=Text(max_tokens=sizes.max_text_tokens),
    )


def openvla_7b(
    *, num_cameras: int = 1, proprio_dim: int = 0, num_actions: int = 8, action_dim: int = 7
) -> Architecture:
    """OpenVLA-OFT with its discrete token head: DINOv2 ViT-L/14 reg4 + SigLIP so400m/14, Llama-2-7B."""
    dino = Vit(
        width=1024,
        depth=24,
        heads=16,
        mlp_width=4096,
        class_token=True,
        num_registers=4,
        layer_scale=True,
        attention_pool=False,
        mean=(0.484375, 0.455078125, 0.40625),  # ImageNet's, rounded to bfloat16 as in the published checkpoints
        std=(0.228515625, 0.2236328125, 0.224609375),
    )
    siglip = Vit(
        width=1152,
        depth=27,
        heads=16,
        mlp_width=4304,
        class_token=False,
        num_registers=0,
        layer_scale=False,
        attention_pool=True,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    return Architecture(
        name="7b",
        image_size_px=224,
        num_cameras=num_cameras,
        proprio_dim=proprio_dim,
        num_actions=num_actions,
        action_dim=action_dim,
        layout="openvla",
        tower=FusedVitTower(dino=dino, siglip=siglip),
        projector=MlpProjector(),
        llm=Llama(width=4096, depth=32, heads=32, mlp_width=11_008, vocab_size=32_064),
        head=TokenHead(),
        text=Text(
            prompt="In: What action should the robot take to {instruction}?\nOut:",
            max_tokens=64,
            pad_id=32_000,
            final_id=29_871,  # the blank between 'Out:' and the answer, as training sees it
        ),
    )

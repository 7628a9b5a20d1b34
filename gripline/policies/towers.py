"""Image towers: pixels to feature vectors. Shapes: M visual tokens per camera, D channels.

The vision transformers are written out here (plain torch, about 90 lines) rather than taken from a library: OpenVLA
reads the second-to-last block without the final norm, its checkpoints use timm's names with fused qkv, and what is
stored but never computed (last block, pooling head) has to be counted exactly.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from gripline.policies.architecture import ConvTower, FusedVitTower, Vit

_STANDARDISE_EPSILON = 1.0 / 255
"""Added to a channel's standard deviation: one grey level. A black image becomes all zeros."""


class ConvFeatures(nn.Module):
    """(B, N, H, W, 3) uint8 -> (B, N, 1, D): one flat feature vector per camera."""

    def __init__(self, config: ConvTower, *, image_size_px: int, num_cameras: int) -> None:
        super().__init__()
        self.config = config
        stages: list[nn.Module] = []
        in_channels = 3
        for out_channels in config.channels:
            stages += [nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1), nn.ReLU()]
            in_channels = out_channels
        stages.append(nn.Conv2d(in_channels, config.out_channels, 1))
        self.stem = nn.Sequential(*stages)
        side = image_size_px
        for _ in config.channels:
            side = (side + 1) // 2
        self.out_dim = config.out_channels * side * side
        self.mean_image_NCHW: Tensor
        self.register_buffer("mean_image_NCHW", torch.zeros(num_cameras, 3, image_size_px, image_size_px))

    def standardised(self, images_BNHWC: Tensor) -> Tensor:
        """Float (B, N, 3, H, W) with channels last in memory, each image standardised by itself as configured."""
        pixels = images_BNHWC.to(torch.float32) / 255
        if self.config.standardise == "channel":
            pixels = pixels - pixels.mean(2, keepdim=True).mean(3, keepdim=True)
            deviation = pixels.square().mean(2, keepdim=True).mean(3, keepdim=True).sqrt()
            pixels = pixels * (1 / (deviation + _STANDARDISE_EPSILON))
        return pixels.permute(0, 1, 4, 2, 3)

    def forward(self, images_BNHWC: Tensor) -> Tensor:
        pixels = self.standardised(images_BNHWC)
        if self.config.mean_image:
            pixels = pixels - self.mean_image_NCHW
        features = cast(Tensor, self.stem(pixels.flatten(0, 1)))
        batch, cameras = images_BNHWC.shape[:2]
        return features.reshape(batch, cameras, 1, self.out_dim)


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.scale_factor


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        batch, length, width = hidden_BSD.shape
        qkv = self.qkv(hidden_BSD).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return cast(Tensor, self.proj(mixed.transpose(1, 2).reshape(batch, length, width)))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(F.gelu(self.fc1(hidden))))


class _Block(nn.Module):
    def __init__(self, config: Vit) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = _Attention(config.width, config.heads)
        self.ls1 = _LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = _Mlp(config.width, config.mlp_width)
        self.ls2 = _LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.ls1(self.attn(self.norm1(hidden)))
        return cast(Tensor, hidden + self.ls2(self.mlp(self.norm2(hidden))))


class _PatchEmbed(nn.Module):
    def __init__(self, width: int, patch_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_px, stride=patch_px)

    def forward(self, pixels: Tensor) -> Tensor:
        return cast(Tensor, self.proj(pixels).flatten(2).transpose(1, 2))


class _AttentionPool(nn.Module):
    """SigLIP's pooling head: weights that checkpoints carry and this policy never reads."""

    def __init__(self, config: Vit) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, config.width))
        self.q = nn.Linear(config.width, config.width)
        self.kv = nn.Linear(config.width, 2 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = _Mlp(config.width, config.mlp_width)


class VitFeatures(nn.Module):
    """(B, 3, H, W) normalised pixels -> (B, M, D): patch features after the second-to-last block, no final norm."""

    def __init__(self, config: Vit, *, image_size_px: int, patch_px: int) -> None:
        super().__init__()
        self.config = config
        num_patches = (image_size_px // patch_px) ** 2
        self.patch_embed = _PatchEmbed(config.width, patch_px)
        self.pos_embed = nn.Parameter(torch.randn(1, num_patches, config.width) * 0.02)
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        if config.num_registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.num_registers, config.width))
        self.blocks = nn.ModuleList([_Block(config) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        if config.attention_pool:
            self.attn_pool = _AttentionPool(config)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        hidden = self.patch_embed(pixels_BCHW) + self.pos_embed
        prefix = [self.cls_token] if self.config.class_token else []
        prefix += [self.reg_token] if self.config.num_registers else []
        num_prefix = sum(token.shape[1] for token in prefix)
        hidden = torch.cat([*(token.expand(hidden.shape[0], -1, -1) for token in prefix), hidden], dim=1)
        for block in list(self.blocks)[:-1]:
            hidden = block(hidden)
        return cast(Tensor, hidden[:, num_prefix:])


class FusedVitFeatures(nn.Module):
    """(B, N, H, W, 3) uint8 -> (B, N, M, D): DINOv2 and SigLIP patch features side by side on channels."""

    def __init__(self, config: FusedVitTower, *, image_size_px: int) -> None:
        super().__init__()
        self.config = config
        self.dino = VitFeatures(config.dino, image_size_px=image_size_px, patch_px=config.patch_px)
        self.siglip = VitFeatures(config.siglip, image_size_px=image_size_px, patch_px=config.patch_px)
        self.out_dim = config.dino.width + config.siglip.width

    def forward(self, images_BNHWC: Tensor) -> Tensor:
        batch, cameras = images_BNHWC.shape[:2]
        pixels = images_BNHWC.flatten(0, 1).permute(0, 3, 1, 2).to(torch.float32) / 255
        towers = ((self.dino, self.config.dino), (self.siglip, self.config.siglip))
        features = torch.cat([tower(self._normalised(pixels, vit)) for tower, vit in towers], dim=-1)
        return features.reshape(batch, cameras, -1, self.out_dim)

    def _normalised(self, pixels: Tensor, vit: Vit) -> Tensor:
        mean, std = pixels.new_tensor(vit.mean), pixels.new_tensor(vit.std)
        dtype = self.dino.pos_embed.dtype
        return ((pixels - mean[:, None, None]) / std[:, None, None]).to(dtype)


def build_tower(
    config: ConvTower | FusedVitTower, *, image_size_px: int, num_cameras: int
) -> ConvFeatures | FusedVitFeatures:
    if isinstance(config, ConvTower):
        return ConvFeatures(config, image_size_px=image_size_px, num_cameras=num_cameras)
    return FusedVitFeatures(config, image_size_px=image_size_px)

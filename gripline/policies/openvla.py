"""Reads OpenVLA-OFT checkpoint directories (the Hugging Face layout) into a VLA.

Tested against small random checkpoints in that layout whose outputs the original implementation produced; the published
7B weights were never loaded here. Only the discrete token head is supported: L1-regression and FiLM files are refused.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, RootModel, ValidationError
from safetensors import SafetensorError, safe_open

from gripline.checkpoint import TOKEN_HEAD
from gripline.errors import UserError, did_you_mean
from gripline.policies.actions import ActionStatistics
from gripline.policies.architecture import Architecture, FusedVitTower, Llama, openvla_7b
from gripline.policies.storage import vla_with_weights
from gripline.policies.tokenizer import TextEncoder
from gripline.policies.vla import VLA

Bounds = Literal["q01_q99", "min_max"]
"""Which pair of a data set's statistics maps to [-1, 1]: quantiles (LIBERO) or extremes (ALOHA, RoboTwin)."""

NUM_PARAMETERS_7B = 7_541_237_184

_PREFIXES = {
    "vision_backbone.featurizer.": "tower.dino.",
    "vision_backbone.fused_featurizer.": "tower.siglip.",
    "projector.": "projector.",
    "language_model.model.": "llm.",
    "language_model.lm_head.": "head.lm_head.",
}
_OTHER_LAYOUT = "use an OpenVLA-OFT checkpoint directory with safetensors weights"
_Parsed = TypeVar("_Parsed", bound=BaseModel)


class _Foreign(BaseModel):
    """Part of a file that others write: keys that are not needed are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _TextConfig(_Foreign):
    """Only what differs from Llama-2-7B is in the file."""

    hidden_size: int = 4096
    intermediate_size: int = 11_008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    vocab_size: int = 32_000
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048


class _Bounds(_Foreign):
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    mask: tuple[bool, ...] | None = None


class _DatasetStatistics(_Foreign):
    action: _Bounds
    proprio: _Bounds | None = None


class _Statistics(RootModel[dict[str, _DatasetStatistics]]):
    """`dataset_statistics.json`, by name of the data set."""


class _Index(_Foreign):
    """Which file holds which weight."""

    weight_map: dict[str, str]


class _Config(_Foreign):
    model_type: Literal["openvla"]
    use_fused_vision_backbone: Literal[True]
    image_sizes: tuple[int, int]
    n_action_bins: int
    pad_to_multiple_of: int
    text_config: _TextConfig
    norm_stats: dict[str, _DatasetStatistics]


class _Normalisation(_Foreign):
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class _Processor(_Foreign):
    tvf_normalize_params: tuple[_Normalisation, _Normalisation]
    """What the published models really used; the file's `means` and `stds` are ImageNet's before rounding."""


def load_openvla(
    directory: Path, architecture: Architecture, *, dataset: str, bounds: Bounds, dtype: torch.dtype = torch.float32
) -> VLA:
    """The VLA of a checkpoint directory; `architecture` as `read_architecture` gave it.

    dataset: whose statistics turn actions into numbers, for example 'libero_10' (or 'libero_10_no_noops').
    Raises UserError where files are missing, keys do not match, or another head than the token head was trained.
    """
    _refuse_other_heads(directory)
    statistics = _statistics(directory, dataset)
    tokenizer = TextEncoder.load(directory, architecture.text)
    weights = {name: tensor.to(dtype) for name, tensor in _tensors(directory)}
    if architecture.proprio_dim:
        weights |= {name: tensor.to(dtype) for name, tensor in _proprio_projector(directory)}
    try:
        vla = vla_with_weights(architecture, tokenizer, weights)
    except RuntimeError as error:  # load_state_dict lists missing, unexpected and misshapen keys over many lines
        problem = "weights do not fit the architecture: " + " ".join(str(error).split())[:300]
        raise UserError(str(directory), "", problem, _OTHER_LAYOUT) from error
    vla.set_action_statistics(_bounds(statistics.action, bounds))
    if architecture.proprio_dim:
        if statistics.proprio is None:
            raise UserError(str(directory), f"{dataset}.proprio", "is missing", "load the checkpoint without proprio")
        vla.set_proprio_statistics(_bounds(statistics.proprio, bounds))
    vla.heads_trained = (TOKEN_HEAD,)
    return vla


def read_architecture(
    directory: Path, *, num_cameras: int, proprio_dim: int, num_actions: int, action_dim: int
) -> Architecture:
    """The architecture that `config.json` and `preprocessor_config.json` describe; towers as in the published models.

    Cameras, chunk length and dimensions are not in the files: the original takes them from its command line.
    """
    config = _parse(_Config, directory / "config.json")
    processor = _parse(_Processor, directory / "preprocessor_config.json")
    base = openvla_7b(num_cameras=num_cameras, proprio_dim=proprio_dim, num_actions=num_actions, action_dim=action_dim)
    text = config.text_config
    if text.vocab_size - config.pad_to_multiple_of != 32_000 or config.n_action_bins != base.num_bins:
        problem = f"vocabulary {text.vocab_size} with {config.n_action_bins} bins is not supported"
        raise UserError(str(directory / "config.json"), "text_config.vocab_size", problem, _OTHER_LAYOUT)
    llm = Llama(
        width=text.hidden_size,
        depth=text.num_hidden_layers,
        heads=text.num_attention_heads,
        mlp_width=text.intermediate_size,
        vocab_size=text.vocab_size,
        norm_epsilon=text.rms_norm_eps,
        max_positions=text.max_position_embeddings,
    )
    assert isinstance(base.tower, FusedVitTower)
    dino, siglip = processor.tvf_normalize_params
    tower = FusedVitTower(
        dino=base.tower.dino.model_copy(update={"mean": dino.mean, "std": dino.std}),
        siglip=base.tower.siglip.model_copy(update={"mean": siglip.mean, "std": siglip.std}),
    )
    return base.model_copy(update={"llm": llm, "tower": tower, "image_size_px": config.image_sizes[0]})


def read_dimensions(directory: Path, dataset: str) -> tuple[int, int]:
    """(action, proprio) dimensions of a data set; proprio 0 where its statistics hold none. Raises UserError."""
    statistics = _statistics(directory, dataset)
    return len(statistics.action.q01), len(statistics.proprio.q01) if statistics.proprio else 0


def _refuse_other_heads(directory: Path) -> None:
    for marker, head in (
        ("action_head", "L1-regression"),
        ("noise_predictor", "diffusion"),
        ("vision_backbone", "FiLM"),
    ):
        found = sorted(directory.glob(f"*{marker}*checkpoint.pt"))
        if found:
            problem = f"{found[0].name} says that the {head} part was trained instead of the token head"
            next_step = "which heads are trained decides: use a checkpoint fine-tuned with the discrete token head"
            raise UserError(str(directory), "heads_trained", problem, next_step)


def _statistics(directory: Path, dataset: str) -> _DatasetStatistics:
    """From `dataset_statistics.json`, else from the configuration; under the name or its '_no_noops' variant."""
    path = directory / "dataset_statistics.json"
    if path.is_file():
        known = _parse(_Statistics, path).root
    else:
        path = directory / "config.json"
        known = _parse(_Config, path).norm_stats
    for name in (dataset, f"{dataset}_no_noops"):
        if name in known:
            return known[name]
    raise UserError(str(path), dataset, "no statistics of this data set", did_you_mean(dataset, known))


def _bounds(statistics: _Bounds, bounds: Bounds) -> ActionStatistics:
    low, high = (statistics.q01, statistics.q99) if bounds == "q01_q99" else (statistics.min, statistics.max)
    mask = (True,) * len(low) if statistics.mask is None else statistics.mask
    return ActionStatistics(low=low, high=high, mask=mask)


def _tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """All weights under this project's names, one at a time."""
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if index.is_file():
        files = sorted({directory / name for name in _parse(_Index, index).weight_map.values()})
    else:
        files = [single]
    for path in files:
        try:
            with safe_open(path, framework="pt") as source:
                for name in source.keys():  # noqa: SIM118 (not a dict)
                    yield _renamed(name, path), source.get_tensor(name)
        except (OSError, SafetensorError) as error:
            problem = f"unreadable: {' '.join(str(error).split())}"
            raise UserError(str(path), "", problem, "copy the checkpoint directory again, whole") from error


def _renamed(name: str, path: Path) -> str:
    for theirs, ours in _PREFIXES.items():
        if name.startswith(theirs):
            # LayerScale is `gamma` in timm and `scale_factor` in converted checkpoints.
            return ours + name.removeprefix(theirs).replace(".gamma", ".scale_factor")
    raise UserError(str(path), name, "is not a weight of OpenVLA", _OTHER_LAYOUT)


def _proprio_projector(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    found = sorted(directory.glob("*proprio_projector*checkpoint.pt"))
    if len(found) != 1:
        problem = f"expected one proprio_projector file, found {len(found)}"
        raise UserError(str(directory), "proprio_dim", problem, "load the checkpoint without proprio")
    try:
        weights = torch.load(found[0], weights_only=True, map_location="cpu")
    except Exception as error:  # pickle, zipfile and torch raise errors of their own for a torn file
        problem = f"unreadable: {' '.join(str(error).split())[:200]}"
        raise UserError(str(found[0]), "", problem, "copy the checkpoint directory again, whole") from error
    for name, tensor in weights.items():
        yield "proprio_projector." + name.removeprefix("module."), tensor


def _parse(schema: type[_Parsed], path: Path) -> _Parsed:
    try:
        return schema.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(str(path), "", f"cannot be read: {error.strerror}", _OTHER_LAYOUT) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(str(path), field, first["msg"], _OTHER_LAYOUT) from None

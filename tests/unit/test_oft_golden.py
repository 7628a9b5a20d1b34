"""The OpenVLA-OFT architecture against numbers that the original implementation produced for small random weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save, save_file
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from gripline.checkpoint import check_fits, checkpoint_hash, read_manifest
from gripline.config import EnvConfig
from gripline.errors import UserError
from gripline.policies import load_policy
from gripline.policies.actions import ActionStatistics, normalised_from_tokens, tokens_from_normalised
from gripline.policies.architecture import Architecture, FusedVitTower, openvla_7b
from gripline.policies.images import centre_crop, lanczos_resize, libero_image
from gripline.policies.importing import Purpose, import_openvla
from gripline.policies.inference import token_logprobs
from gripline.policies.openvla import NUM_PARAMETERS_7B, load_openvla, read_architecture
from gripline.policies.tokenizer import TextEncoder, word_tokenizer
from gripline.policies.vla import STOP_ID, VLA
from gripline.types import EnvSpec

GOLDEN = Path(__file__).parents[3] / "shared" / "data" / "oft_golden"
PACK = GOLDEN / "tiny_token_head"
HIGHEST_ID = 31_999
"""The text id of the lowest action, token 0."""
TIMM_NAMES = {"dino": "vit_large_patch14_reg4_dinov2.lvd142m", "siglip": "vit_so400m_patch14_siglip_224"}

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"reference data not found in {GOLDEN}")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def miniature(directory: Path, *, num_cameras: int = 1, proprio_dim: int = 0) -> Architecture:
    """The architecture of a reference pack: real files, but towers shrunk by `vision_overrides.json`."""
    architecture = read_architecture(
        directory, num_cameras=num_cameras, proprio_dim=proprio_dim, num_actions=8, action_dim=7
    )
    overrides = json.loads((directory / "vision_overrides.json").read_text())
    assert isinstance(architecture.tower, FusedVitTower)
    shrunk = {}
    for name, vit in (("dino", architecture.tower.dino), ("siglip", architecture.tower.siglip)):
        given = overrides[TIMM_NAMES[name]]
        width = given["embed_dim"]
        sizes = {"width": width, "depth": given["depth"], "heads": given["num_heads"]}
        shrunk[name] = vit.model_copy(update=sizes | {"mlp_width": int(width * vit.mlp_width / vit.width)})
    return architecture.model_copy(update={"tower": architecture.tower.model_copy(update=shrunk)})


def toy_llama_tokenizer() -> tokenizers.Tokenizer:
    """Stands in for Llama's: begins with id 1, knows two words."""
    tokenizer = tokenizers.Tokenizer(
        models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "robot": 3, "robot?": 4}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def checkpoint_copy(pack: Path, target: Path) -> Path:
    target.mkdir()
    for name in ("config.json", "preprocessor_config.json", "dataset_statistics.json", "vision_overrides.json"):
        shutil.copyfile(pack / name, target / name)
    (target / "model.safetensors").symlink_to(pack / "model.safetensors")
    (target / "tokenizer.json").write_text(toy_llama_tokenizer().to_str())
    return target


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not GOLDEN.is_dir():
        pytest.skip(f"reference data not found in {GOLDEN}")
    return checkpoint_copy(PACK, tmp_path_factory.mktemp("openvla") / "checkpoint")


@pytest.fixture(scope="module")
def vla(checkpoint: Path) -> VLA:
    return load_openvla(checkpoint, miniature(checkpoint), dataset="libero_10", bounds="q01_q99").eval()


def arrays(name: str, pack: Path = PACK) -> dict[str, np.ndarray]:
    with np.load(pack / name) as source:
        return dict(source)


def forward_inputs(images: np.ndarray, prompts: list[np.ndarray]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (B, H, W, C) and prompt ids of any length, padded to a common one."""
    length = max(map(len, prompts))
    tokens_BL = torch.tensor([[*ids, *[32_000] * (length - len(ids))] for ids in prompts])
    mask_BL = torch.tensor([[True] * len(ids) + [False] * (length - len(ids)) for ids in prompts])
    return torch.from_numpy(images[:, None]), torch.zeros(len(prompts), 0), tokens_BL, mask_BL


def token_head_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = arrays("token_head.npz")
    return forward_inputs(data["images"], list(data["input_ids"]))


def ascending_ids(logits_BKAV: Tensor) -> np.ndarray:
    """(B, K*A, 256) in the reference's order of text ids, which is the reverse of the order of actions."""
    return logits_BKAV.flatten(1, 2).flip(-1).numpy()


def test_preset_7b_has_exactly_the_published_number_of_parameters() -> None:
    """Catches a part that is missing, doubled or misshapen in the preset."""
    architecture = openvla_7b()
    with torch.device("meta"):
        policy = VLA(architecture, TextEncoder(word_tokenizer([]), architecture.text))
    assert sum(parameter.numel() for parameter in policy.parameters()) == NUM_PARAMETERS_7B


@needs_golden
def test_towers_and_projector(vla: VLA) -> None:
    """Catches a wrong block, a final norm, kept prefix tokens, swapped towers or the wrong pixel normalisation."""
    expected = arrays("intermediates_sample0.npz")
    images = token_head_inputs()[0][:1]
    with torch.no_grad():
        features = vla.tower(images)
        np.testing.assert_allclose(features[0, 0, :, :48], expected["dino_patch_features"], atol=2e-5)
        np.testing.assert_allclose(features[0, 0, :, 48:], expected["siglip_patch_features"], atol=2e-5)
        np.testing.assert_allclose(vla.projector(features)[0], expected["projected_patches"], atol=2e-5)


@needs_golden
def test_sequence_and_hidden_states(vla: VLA) -> None:
    """Catches a wrong order of the sequence, wrong positions and causal attention."""
    expected = arrays("intermediates_sample0.npz")
    with torch.no_grad():
        embeds, mask = vla.embed(*(part[:1] for part in token_head_inputs()))
        np.testing.assert_allclose(embeds[0], expected["lm_input_embeds"], atol=2e-5)
        np.testing.assert_allclose(vla.run_llm(embeds, mask)[0], expected["hidden_last_after_final_norm"], atol=2e-4)


@needs_golden
def test_logits_and_greedy_tokens(vla: VLA) -> None:
    """Catches answers read one position off, and token ids counted from the wrong end."""
    expected = arrays("token_head.npz")
    with torch.no_grad():
        logits = vla(*token_head_inputs())
        hidden = vla.action_hidden(*token_head_inputs())[:, :-1]
        full_vocabulary = vla.head.lm_head(hidden)
    np.testing.assert_allclose(ascending_ids(logits), expected["logits_256"], atol=2e-4)
    tokens_BKA = logits.argmax(-1).numpy()
    np.testing.assert_array_equal(HIGHEST_ID - tokens_BKA.reshape(3, 56), expected["argmax_256_as_token_id"])
    np.testing.assert_array_equal(full_vocabulary.argmax(-1), expected["argmax_full_vocab"])
    normalised = normalised_from_tokens(tokens_BKA, 256)
    np.testing.assert_allclose(normalised, expected["normalized_actions_256_argmax"], atol=1e-12)
    np.testing.assert_allclose(vla.decode_actions(tokens_BKA), expected["unnormalized_actions_256_argmax"], atol=1e-6)


@needs_golden
def test_causal_attention_would_be_noticed(vla: VLA) -> None:
    """The negative control: the reference's causal logits are far from ours."""
    wrong = arrays("token_head.npz")["logits_256_WRONG_causal_attention"]
    with torch.no_grad():
        ours = ascending_ids(vla(*token_head_inputs()))[:1]
    assert np.abs(ours - wrong).max() > 1


@needs_golden
def test_bidirectional_probe(vla: VLA) -> None:
    """Catches causal or half-causal attention: a change at the end must reach the beginning, as much as there."""
    expected = json.loads((PACK / "tolerances.json").read_text())["bidirectional_probe"]
    inputs = tuple(part[:1] for part in token_head_inputs())
    with torch.no_grad():
        embeds, mask = vla.embed(*inputs)
        before = vla.run_llm(embeds, mask)
        embeds[:, -2] += 1
        change = (vla.run_llm(embeds, mask) - before).abs().amax(-1)[0]
    first_answer = 256 + inputs[2].shape[1] - 1
    assert change[0] == pytest.approx(expected["add_1_to_last_placeholder_embedding__first_position(BOS)"], abs=1e-4)
    name = "add_1_to_last_placeholder_embedding__first_action_position"
    assert change[first_answer] == pytest.approx(expected[name], abs=1e-4)


@needs_golden
def test_prompts_of_different_length_in_one_batch(vla: VLA) -> None:
    """Catches padding that is attended to or that shifts positions: the reference ran each prompt alone."""
    expected = arrays("variable_length.npz")
    prompts = [expected["input_ids_0"], expected["input_ids_1"]]
    prompts = [ids if ids[-1] == 29_871 else np.append(ids, 29_871) for ids in prompts]
    images = np.stack([expected["image_0"], expected["image_1"]])
    with torch.no_grad():
        logits = ascending_ids(vla(*forward_inputs(images, prompts)))
    for row in range(2):
        np.testing.assert_allclose(logits[row], expected[f"logits_256_{row}"], atol=2e-4)


@needs_golden
def test_logprobs_at_the_rollout_temperature(vla: VLA) -> None:
    """Catches a temperature applied twice, or not, and a softmax over the full vocabulary."""
    expected = arrays("policy_logprobs.npz")
    tokens_BKA = torch.from_numpy(HIGHEST_ID - expected["action_token_ids"]).reshape(3, 8, 7)
    with torch.no_grad():
        logits = vla(*token_head_inputs())
    tempered = token_logprobs(logits, tokens_BKA, float(expected["temperature"])).flatten(1)
    np.testing.assert_allclose(tempered, expected["log_probs"], atol=2e-4)
    plain = token_logprobs(logits, tokens_BKA, 1.0).flatten(1)
    np.testing.assert_allclose(plain, expected["log_probs_temperature_1"], atol=2e-4)


@needs_golden
@pytest.mark.parametrize("batch", ["equal", "padded"])
def test_supervised_loss_and_gradients(vla: VLA, batch: str) -> None:
    """Catches a part that gets no gradient or a wrong one, and answers that are off by one in training."""
    data = arrays("sft_batch.npz")
    expected = json.loads((PACK / "sft_loss.json").read_text())[batch]
    ids, labels = data[f"{batch}_input_ids"], data[f"{batch}_labels"]
    # A row is [prompt][56 action ids][</s>][padding]; labels mark the action ids and </s>.
    starts = [int(np.flatnonzero(row != -100)[0]) for row in labels]
    prompts = [row[:start] for row, start in zip(ids, starts, strict=True)]
    targets = torch.from_numpy(np.stack([row[start : start + 57] for row, start in zip(ids, starts, strict=True)]))
    assert (targets[:, -1] == STOP_ID).all()
    actions = data[f"{batch}_actions"].reshape(3, 56)
    np.testing.assert_array_equal(HIGHEST_ID - tokens_from_normalised(actions, 256), targets[:, :56])
    vla.zero_grad()
    hidden = vla.action_hidden(*forward_inputs(arrays("token_head.npz")["images"], prompts))
    per_token = F.cross_entropy(vla.head.lm_head(hidden).flatten(0, 1), targets.flatten(), reduction="none")
    np.testing.assert_allclose(per_token.detach().reshape(3, 57), data[f"{batch}_per_token_loss"], atol=2e-4)
    loss = per_token.mean()
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-5)
    loss.backward()
    gradient = vla.projector.fc3.bias.grad
    np.testing.assert_allclose(gradient, data[f"{batch}_grad_projector_fc3_bias"], rtol=1e-4, atol=1e-6)
    norms = {name: p.grad.norm() ** 2 for name, p in vla.named_parameters() if p.grad is not None}
    assert float(sum(norms.values())) ** 0.5 == pytest.approx(expected["total_grad_norm"], rel=1e-4)
    never_used = [name for name, parameter in vla.named_parameters() if parameter.grad is None]
    assert len(never_used) == len(expected["parameters_without_gradient"])


@needs_golden
def test_proprio_token() -> None:
    """Catches a proprio token that is normalised, projected or placed differently."""
    pack = GOLDEN / "tiny_l1_head"
    data = arrays("l1_head.npz", pack)
    architecture = miniature(pack, num_cameras=2, proprio_dim=8)
    policy = VLA(architecture, TextEncoder(toy_llama_tokenizer(), architecture.text))
    file = next(pack.glob("proprio_projector*"))
    weights = torch.load(file, weights_only=True)
    assert policy.proprio_projector is not None
    policy.proprio_projector.load_state_dict({name.removeprefix("module."): value for name, value in weights.items()})
    [dataset] = json.loads((pack / "dataset_statistics.json").read_text()).values()
    stats = dataset["proprio"]
    policy.set_proprio_statistics(ActionStatistics.between(stats["q01"], stats["q99"]))
    raw = torch.from_numpy(data["proprio_raw_0"].astype(np.float32))[None]
    images = torch.from_numpy(data["images_0"])[None]
    tokens = torch.from_numpy(data["input_ids_0"])[None]
    with torch.no_grad():
        embeds, mask = policy.embed(images, raw, tokens, torch.ones_like(tokens, dtype=torch.bool))
    np.testing.assert_allclose(embeds[0, 1 + 2 * 256], data["proprio_token_0"], atol=1e-5)
    assert embeds.shape[1] == 1 + 2 * 256 + 1 + (tokens.shape[1] - 1) + 56 + 1 and mask.all()


@needs_golden
def test_action_tokens() -> None:
    """Catches bins that are off by one at an edge, and the top token decoded beyond the last centre."""
    data = arrays("action_tokens.npz", GOLDEN)
    for kind in ("random_f64", "random_f32", "edge_f64", "edge_f32"):
        tokens = tokens_from_normalised(data[f"{kind}_actions"], 256)
        np.testing.assert_array_equal(HIGHEST_ID - tokens, data[f"{kind}_token_ids"])
        np.testing.assert_array_equal(normalised_from_tokens(tokens, 256), data[f"{kind}_decoded"])
    decoded = normalised_from_tokens(HIGHEST_ID - data["all_token_ids"], 256)
    np.testing.assert_array_equal(decoded, data["all_token_ids_decoded"])


@needs_golden
def test_unnormalisation() -> None:
    """Catches the wrong bounds, a scaled gripper and the missing 1e-8."""
    data = arrays("action_tokens.npz", GOLDEN)
    for robot, (low, high) in {"libero": ("q01", "q99"), "robotwin": ("min", "max")}.items():
        mask = tuple(data[f"{robot}_stats_mask"].tolist())
        bounds = (tuple(data[f"{robot}_stats_{name}"].tolist()) for name in (low, high))
        statistics = ActionStatistics(low=next(bounds), high=next(bounds), mask=mask)
        actual = statistics.unnormalise(data[f"{robot}_norm_actions"])
        np.testing.assert_allclose(actual, data[f"{robot}_unnorm_actions"], rtol=0, atol=1e-15)


@needs_golden
@pytest.mark.parametrize(("robot", "bounds"), [("libero", ("q01", "q99")), ("robotwin", ("min", "max"))])
@pytest.mark.parametrize("what", ["action", "proprio"])
def test_training_normalisation(robot: str, bounds: tuple[str, str], what: str) -> None:
    """Catches unclipped outliers and a constant dimension that becomes -1 instead of 0."""
    data = arrays("train_normalization.npz", GOLDEN)
    low, high = (tuple(data[f"{robot}_{what}_{name}"].tolist()) for name in bounds)
    mask = tuple(data[f"{robot}_action_mask"].tolist()) if what == "action" else (True,) * len(low)
    statistics = ActionStatistics(low=low, high=high, mask=mask)
    actual = statistics.normalise(data[f"{robot}_{what}_in"])
    np.testing.assert_allclose(actual, data[f"{robot}_{what}_out"], atol=2e-6)


@needs_golden
def test_image_chain() -> None:
    """Catches a wrong crop side, a resize that rounds between the axes, and any shift of half a pixel."""
    data = arrays("image_chain.npz", GOLDEN)
    for index in range(4):
        for actual, name in (
            (lanczos_resize(data[f"after_jpeg_{index}"], size_px=224), "resize"),
            (centre_crop(data[f"after_resize_{index}"], size_px=224), "crop"),
        ):
            difference = np.abs(actual.astype(int) - data[f"after_{name}_{index}"])
            assert difference.max() <= 1 and (difference > 0).mean() < 5e-4
        chain = np.abs(libero_image(data[f"input_{index}"]).astype(int) - data[f"after_crop_{index}"])
        assert chain.mean() < 1.5  # only the JPEG decoder differs
    wide = np.abs(centre_crop(data["input_4"], size_px=224).astype(int) - data["after_crop_4"])
    assert wide.max() <= 1 and (wide > 0).mean() < 5e-4


@needs_golden
def test_sharded_checkpoints_and_timm_names_load_alike(vla: VLA, checkpoint: Path, tmp_path: Path) -> None:
    """Catches a loader that reads the first shard only, or only one of LayerScale's two names."""
    weights = load_file(PACK / "model.safetensors")
    weights = {name.replace(".scale_factor", ".gamma"): tensor for name, tensor in weights.items()}
    directory = checkpoint_copy(PACK, tmp_path / "sharded")
    (directory / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, directory / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = load_openvla(directory, miniature(directory), dataset="libero_10", bounds="q01_q99")
    assert all(torch.equal(ours, vla.state_dict()[name]) for name, ours in sharded.state_dict().items())
    assert sharded.heads_trained == ("token",)


@needs_golden
def test_bfloat16(checkpoint: Path) -> None:
    """Catches a part that stays in another precision and breaks the forward pass of a policy loaded for a GPU."""
    policy = load_openvla(
        checkpoint, miniature(checkpoint), dataset="libero_10", bounds="q01_q99", dtype=torch.bfloat16
    )
    with torch.no_grad():
        logits = policy(*token_head_inputs())
    assert logits.dtype == torch.float32
    difference = np.abs(ascending_ids(logits) - arrays("token_head.npz")["logits_256"])
    assert difference.mean() < 0.1  # of a standard deviation of 2.8


@needs_golden
def test_an_l1_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    """Catches RL on a token head that was never trained: it would stay at zero success for days."""
    directory = checkpoint_copy(GOLDEN / "tiny_l1_head", tmp_path / "l1")
    (directory / "action_head--150000_checkpoint.pt").write_bytes(b"")
    with pytest.raises(UserError, match="which heads are trained") as caught:
        load_openvla(directory, miniature(directory), dataset="libero_10", bounds="q01_q99")
    assert "\n" not in str(caught.value) and "L1-regression" in str(caught.value)


@needs_golden
def test_bad_openvla_directories(checkpoint: Path, tmp_path: Path) -> None:
    """Catches tracebacks instead of one line for the usual mistakes."""
    architecture = miniature(checkpoint)
    with pytest.raises(UserError, match="did you mean 'libero_10_no_noops'"):
        load_openvla(checkpoint, architecture, dataset="libero_11", bounds="q01_q99")
    incomplete = checkpoint_copy(PACK, tmp_path / "incomplete")
    (incomplete / "model.safetensors").unlink()
    with pytest.raises(UserError, match="unreadable"):
        load_openvla(incomplete, architecture, dataset="libero_10", bounds="q01_q99")
    weights = load_file(PACK / "model.safetensors")
    del weights["projector.fc1.bias"]
    save_file(weights, incomplete / "model.safetensors")
    with pytest.raises(UserError, match=r"projector\.fc1\.bias"):
        load_openvla(incomplete, architecture, dataset="libero_10", bounds="q01_q99")
    (incomplete / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(UserError, match="model_type"):
        miniature(incomplete)


PURPOSE = Purpose(dataset="libero_10", suite="libero", cameras=("front",), dtype="float32")


@needs_golden
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_imported_checkpoint_is_one_of_ours(
    checkpoint: Path, tmp_path: Path, dtype: Literal["float32", "bfloat16"]
) -> None:
    """Catches weights, statistics or words that are lost on the way, and a checkpoint that nobody can start from."""
    out = tmp_path / "imported"
    hash_ = import_openvla(checkpoint, out, replace(PURPOSE, dtype=dtype), miniature(checkpoint))
    manifest = read_manifest(out)
    assert (checkpoint_hash(out), manifest.provenance.stage) == (hash_, "import")
    assert manifest.heads_trained == ("token",)
    contract = manifest.contract
    assert (contract.suite, contract.cameras, contract.image_size_px) == ("libero", ("front",), 224)
    assert (contract.action_dim, contract.num_actions, contract.hold_steps, contract.proprio_dim) == (7, 8, 1, 0)
    spec = EnvSpec(
        suite="libero",
        tasks=("put",),
        cameras=("front",),
        image_size_px=224,
        proprio_dim=8,
        action_dim=7,
        action_low_A=(-1.0,) * 7,
        action_high_A=(1.0,) * 7,
        control_hz=20.0,
        horizon_steps=520,
        success_means="it is there",
    )
    check_fits(manifest, spec, EnvConfig(tasks=("put",), hold_steps=1), where="imported")
    policy = load_policy(out)
    expected = arrays("token_head.npz")
    with torch.no_grad():
        logits = policy(*token_head_inputs())
    assert next(policy.parameters()).dtype == getattr(torch, dtype)
    if dtype == "float32":
        np.testing.assert_allclose(ascending_ids(logits), expected["logits_256"], atol=2e-4)
        actions = policy.decode_actions(logits.argmax(-1).numpy())
        np.testing.assert_allclose(actions, expected["unnormalized_actions_256_argmax"], atol=1e-6)
    ids, _ = policy.encode_text(["open the robot"])
    assert ids[0, 0] == 1 and 29_871 in ids[0]


@needs_golden
def test_what_cannot_be_imported_is_one_line_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """Catches tracebacks for missing, torn and foreign files, and half a checkpoint where one was refused."""
    architecture = miniature(checkpoint)

    def refusal(name: str, content: bytes | None, purpose: Purpose = PURPOSE) -> str:
        """With one file replaced, or without it."""
        directory = checkpoint_copy(PACK, tmp_path / "source")
        if content is None:
            (directory / name).unlink()
        elif name:
            (directory / name).unlink(missing_ok=True)
            (directory / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            import_openvla(directory, tmp_path / "out", purpose, architecture)
        shutil.rmtree(directory)
        assert "\n" not in caught.value.line and caught.value.next_step
        assert list(tmp_path.iterdir()) == []
        return caught.value.line

    weights = load_file(PACK / "model.safetensors")
    weights["projector.fc1.weight"] = weights["projector.fc1.weight"][:, :-1].contiguous()
    assert "size mismatch for projector.fc1.weight" in refusal("model.safetensors", save(weights))
    assert "config.json: is missing" in refusal("config.json", None)
    assert "model.safetensors: unreadable" in refusal("model.safetensors", None)
    assert "model.safetensors: unreadable" in refusal("model.safetensors", b"\x08\x00")
    assert "tokenizer.json: not a readable tokenizer" in refusal("tokenizer.json", None)
    assert "dataset_statistics.json: Invalid JSON" in refusal("dataset_statistics.json", b"{")
    assert "Field required" in refusal("dataset_statistics.json", b'{"libero_10": {}}')
    assert "model.safetensors.index.json: weight_map" in refusal("model.safetensors.index.json", b"{}")
    index = b'{"weight_map": {"projector.fc1.bias": "model-00001.safetensors"}}'
    assert "model-00001.safetensors: unreadable" in refusal("model.safetensors.index.json", index)
    assert "did you mean 'libero_10_no_noops'" in refusal("", b"", replace(PURPOSE, dataset="libero_11"))
    assert "L1-regression" in refusal("action_head--1_checkpoint.pt", b"")

    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="--out: exists already"):
        import_openvla(checkpoint, tmp_path / "out", PURPOSE, architecture)


@needs_golden
def test_a_torn_proprio_projector_is_one_line(tmp_path: Path) -> None:
    directory = checkpoint_copy(PACK, tmp_path / "source")
    (directory / "proprio_projector--1_checkpoint.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(UserError, match=r"proprio_projector--1_checkpoint\.pt: unreadable") as caught:
        load_openvla(directory, miniature(directory, proprio_dim=8), dataset="libero_10", bounds="q01_q99")
    assert "\n" not in caught.value.line


@needs_golden
def test_the_command_reads_the_architecture_from_the_files(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The miniature's towers are smaller than the published ones: all of the command but the writing runs."""
    from pipelines.cli import main

    options = ["--dataset", "libero_10", "--suite", "libero", "--camera", "front", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main(["import", str(checkpoint), *options])
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and errors.count("\n") == 1
    assert f"gripline: {checkpoint}: weights do not fit the architecture: " in errors


def test_prompt_is_built_as_in_training() -> None:
    """Catches capitals, a missing end-of-prompt id and one appended twice."""
    text = openvla_7b().text
    tokenizer = toy_llama_tokenizer()
    ids, mask = TextEncoder(tokenizer, text).encode(["Open The ROBOT"])
    words = ["In:", "What", "action", "should", "the", "robot", "take", "to", "open", "the", "robot?", "Out:"]
    assert ids.shape == (1, text.max_tokens)
    assert ids[0, : mask.sum()].tolist() == [
        1,
        *(3 if word == "robot" else 4 if word == "robot?" else 0 for word in words),
        29_871,
    ]
    assert (ids[0, mask.sum() :] == 32_000).all()

"""What every policy must hold. A new policy adds a line to POLICIES and is tested like the others."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gripline.config import EnvConfig, LoraConfig, PolicyConfig
from gripline.policies import ActionStatistics, build_policy, load_policy, save_policy
from gripline.policies.architecture import Architecture, FusedVitTower, Llama, openvla_7b
from gripline.policies.inference import TorchPolicy, make_policy, token_logprobs
from gripline.policies.lora import apply_lora, has_adapters, merged_copy
from gripline.policies.storage import contract_of, seeded_vla
from gripline.policies.tokenizer import TextEncoder, word_tokenizer
from gripline.policies.vla import VLA
from gripline.types import EnvSpec, Observation, Policy

INSTRUCTIONS = ("open the faucet", "close the faucet", "open the drawer")
ENV = EnvConfig(tasks=("faucet-open-v3",))


def env_spec(*, cameras: tuple[str, ...] = ("front",), image_size_px: int = 64) -> EnvSpec:
    return EnvSpec(
        suite="metaworld",
        tasks=("faucet-open-v3",),
        cameras=cameras,
        image_size_px=image_size_px,
        proprio_dim=4,
        action_dim=4,
        action_low_A=(-1.0, -1.0, -1.0, -1.0),
        action_high_A=(1.0, 1.0, 1.0, 2.0),
        control_hz=80.0,
        horizon_steps=112,
        success_means="the faucet is open",
    )


def tiny(seed: int) -> VLA:
    return build_policy(PolicyConfig(num_actions=2), env_spec(), instructions=INSTRUCTIONS, seed=seed)


def tiny_two_cameras_proprio(seed: int) -> VLA:
    spec = env_spec(cameras=("front", "wrist"), image_size_px=32)
    vla = build_policy(PolicyConfig(use_proprio=True), spec, instructions=INSTRUCTIONS, seed=seed)
    vla.set_proprio_statistics(ActionStatistics.between((-2.0, -3.0, -2.0, -4.0), (3.0, 2.0, 4.0, 2.0)))
    return vla


def miniature_openvla(seed: int) -> VLA:
    """The 7B architecture with every width cut down."""
    spec = env_spec(image_size_px=28)
    full = openvla_7b(proprio_dim=spec.proprio_dim, num_actions=2, action_dim=spec.action_dim)
    assert isinstance(full.tower, FusedVitTower)
    small = {"width": 16, "depth": 3, "heads": 2, "mlp_width": 32}
    tower = FusedVitTower(
        dino=full.tower.dino.model_copy(update=small), siglip=full.tower.siglip.model_copy(update=small)
    )
    llm = Llama(width=32, depth=2, heads=4, mlp_width=64, vocab_size=32_064, init_std=0.2)
    text = full.text.model_copy(update={"max_tokens": 24})
    architecture: Architecture = full.model_copy(
        update={"name": "miniature-openvla", "tower": tower, "llm": llm, "text": text, "image_size_px": 28}
    )
    corpus = [text.prompt.format(instruction=instruction) for instruction in INSTRUCTIONS]
    vla = seeded_vla(architecture, TextEncoder(word_tokenizer(corpus), text), seed=seed)
    vla.set_action_statistics(ActionStatistics.between(spec.action_low_A, spec.action_high_A))
    vla.contract = contract_of(architecture, spec)
    return vla


POLICIES: dict[str, Callable[[int], VLA]] = {
    "tiny": tiny,
    "tiny, two cameras, proprio": tiny_two_cameras_proprio,
    "miniature openvla": miniature_openvla,
}


@pytest.fixture(scope="module", params=sorted(POLICIES), autouse=True)
def vla(request: pytest.FixtureRequest) -> VLA:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    return POLICIES[request.param](1).eval()


def observations(vla: VLA, count: int) -> list[Observation]:
    rng = np.random.default_rng(3)
    side, cameras = vla.architecture.image_size_px, vla.architecture.num_cameras
    return [
        Observation(
            images_NHWC=rng.integers(0, 256, (cameras, side, side, 3), dtype=np.uint8),
            proprio_P=rng.standard_normal(4).astype(np.float32),
            instruction=(*INSTRUCTIONS, "", "twist the tap")[index % 5],
        )
        for index in range(count)
    ]


def logits(vla: VLA, rows: list[Observation]) -> torch.Tensor:
    images = torch.from_numpy(np.stack([row.images_NHWC for row in rows]))
    proprio = torch.from_numpy(np.stack([row.proprio_P for row in rows]))
    with torch.no_grad():
        return vla(images, proprio, *vla.encode_text([row.instruction for row in rows]))


def changed(row: Observation, **fields: object) -> Observation:
    return Observation(
        **({"images_NHWC": row.images_NHWC, "proprio_P": row.proprio_P, "instruction": row.instruction} | fields)
    )


def test_obeys_the_protocol(vla: VLA) -> None:
    """Catches wrong shapes, wrong types and tokens out of range."""
    policy = TorchPolicy(vla)
    assert isinstance(policy, Policy)
    answer = policy.act(observations(vla, 5), noise_keys=[(7, step) for step in range(5)], temperature=1.6)
    shape = (5, policy.num_actions, policy.action_dim)
    assert answer.tokens_BKA.shape == answer.actions_BKA.shape == answer.logprobs_BKA.shape == shape
    assert answer.actions_BKA.dtype == np.float32
    assert answer.tokens_BKA.min() >= 0 and answer.tokens_BKA.max() < vla.architecture.num_bins
    assert (answer.logprobs_BKA < 0).all()


def test_rows_do_not_depend_on_their_company(vla: VLA) -> None:
    """Catches any leak or rounding between rows: alone, in company and permuted must be equal to the last bit."""
    policy, rows = make_policy(vla), observations(vla, 37)
    keys = [(11, index) for index in range(37)]
    together = policy.act(rows, noise_keys=keys, temperature=1.6)
    for count in (1, 3, 4, 9, 20):
        part = policy.act(rows[:count], noise_keys=keys[:count], temperature=1.6)
        np.testing.assert_array_equal(part.tokens_BKA, together.tokens_BKA[:count])
        np.testing.assert_array_equal(part.logprobs_BKA, together.logprobs_BKA[:count])
    order = np.random.default_rng(0).permutation(37)
    shuffled = policy.act([rows[i] for i in order], noise_keys=[keys[i] for i in order], temperature=1.6)
    np.testing.assert_array_equal(shuffled.logprobs_BKA, together.logprobs_BKA[order])
    np.testing.assert_array_equal(shuffled.actions_BKA, together.actions_BKA[order])


def test_noise_comes_from_its_key_alone(vla: VLA) -> None:
    """Catches a draw from a global generator, and keys that are ignored or mixed up."""
    policy, row = TorchPolicy(vla), observations(vla, 1)[0]

    def sample(*keys: tuple[int, int]) -> np.ndarray:
        return policy.act([row] * len(keys), noise_keys=list(keys), temperature=1.6).tokens_BKA

    first = sample((5, 0), (5, 1), (6, 0))
    np.random.seed(0)
    torch.manual_seed(0)
    np.testing.assert_array_equal(sample((6, 0), (5, 0), (5, 1)), first[[2, 0, 1]])
    assert len({tokens.tobytes() for tokens in first}) == 3


def test_sampling_follows_the_tempered_softmax(vla: VLA) -> None:
    """Catches a temperature on the wrong side and biased noise: frequencies of one token against its probability."""
    policy, row = TorchPolicy(vla, batch_sizes=(32,)), observations(vla, 1)[0]
    sampled = policy.act([row] * 640, noise_keys=[(1, index) for index in range(640)], temperature=0.7)
    probabilities = torch.softmax(logits(vla, [row])[0, 0, 0] / 0.7, dim=-1).numpy()
    low = probabilities.cumsum() < 0.5
    share = low[sampled.tokens_BKA[:, 0, 0]].mean()
    expected = probabilities[low].sum()
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 640) ** 0.5


def test_greedy_takes_the_most_likely_token(vla: VLA) -> None:
    """Catches noise in evaluation."""
    policy, rows = TorchPolicy(vla), observations(vla, 4)
    greedy = policy.act(rows, noise_keys=None, temperature=1.0)
    np.testing.assert_array_equal(greedy.tokens_BKA, logits(vla, rows).argmax(-1))
    np.testing.assert_array_equal(greedy.actions_BKA, vla.decode_actions(greedy.tokens_BKA))


def test_learner_recomputes_the_same_logprobs(vla: VLA) -> None:
    """Catches a temperature missing on one side: the ratio of the first update would not be 1."""
    policy, rows = make_policy(vla), observations(vla, 16)
    answer = policy.act(rows, noise_keys=[(2, index) for index in range(16)], temperature=1.6)
    recomputed = token_logprobs(logits(vla, rows), torch.from_numpy(answer.tokens_BKA), 1.6)
    np.testing.assert_allclose(answer.logprobs_BKA, recomputed, atol=1e-5)


def test_image_and_instruction_matter(vla: VLA) -> None:
    """Catches a policy that is blind or cannot read, and one that tells tasks apart by anything but the text."""
    row = observations(vla, 1)[0]
    base = logits(vla, [row] * 4)[0]
    other_image = changed(row, images_NHWC=np.roll(row.images_NHWC, 5, axis=1))
    texts = [changed(row, instruction=text) for text in (*INSTRUCTIONS[1:], "")]
    for other in (other_image, *texts):
        assert (logits(vla, [other] * 4)[0] - base).abs().max() > 1e-4
    same = [changed(row, instruction=text) for text in ("Open the Faucet", "open  the faucet")]
    for other in same:
        assert torch.equal(logits(vla, [other] * 4)[0], base)


def test_unknown_words_are_read_as_one_word(vla: VLA) -> None:
    """Catches a paraphrase that crashes or is silently cut."""
    row = observations(vla, 1)[0]
    tap, valve = (logits(vla, [changed(row, instruction=f"open the {word}")] * 4) for word in ("tap", "valve"))
    assert torch.equal(tap, valve) and torch.isfinite(tap).all()


def test_black_image_is_finite(vla: VLA) -> None:
    """Catches a division by a standard deviation of zero."""
    row = observations(vla, 1)[0]
    assert torch.isfinite(logits(vla, [changed(row, images_NHWC=np.zeros_like(row.images_NHWC))])).all()


def test_proprioception_is_read_only_where_the_architecture_says_so(vla: VLA) -> None:
    """Catches proprioception that leaks in, the shortcut by which a policy stays blind."""
    row = observations(vla, 1)[0]
    moved = logits(vla, [changed(row, proprio_P=row.proprio_P * 0.5)] * 4)
    assert torch.equal(moved, logits(vla, [row] * 4)) == (vla.architecture.proprio_dim == 0)


def test_attention_is_bidirectional(vla: VLA) -> None:
    """Catches causal attention: a change of the last position must reach the first answer."""
    row = observations(vla, 1)[0]
    images, proprio = torch.from_numpy(row.images_NHWC)[None], torch.from_numpy(row.proprio_P)[None]
    with torch.no_grad():
        embeds, mask = vla.embed(images, proprio, *vla.encode_text([row.instruction]))
        before = vla.run_llm(embeds, mask)
        embeds[:, -1] += 1
        after = vla.run_llm(embeds, mask)
    assert (after - before)[0, 0].abs().max() > 1e-4


def test_padding_is_never_attended_to(vla: VLA) -> None:
    """Catches a mask that is dropped: whatever stands at a padded position must not change any answer."""
    row = observations(vla, 1)[0]
    images, proprio = torch.from_numpy(row.images_NHWC)[None], torch.from_numpy(row.proprio_P)[None]
    tokens, mask = vla.encode_text([row.instruction])
    other = torch.where(mask, tokens, 1)
    assert not mask.all()
    with torch.no_grad():
        assert torch.equal(vla(images, proprio, tokens, mask), vla(images, proprio, other, mask))


def test_every_computed_part_gets_a_gradient(vla: VLA) -> None:
    """Catches a part that training would silently leave at its random start."""
    row = observations(vla, 1)[0]
    images, proprio = torch.from_numpy(row.images_NHWC)[None], torch.from_numpy(row.proprio_P)[None]
    vla.zero_grad()
    vla(images, proprio, *vla.encode_text([row.instruction])).square().mean().backward()
    without = {name for name, parameter in vla.named_parameters() if parameter.grad is None}
    vla.zero_grad()
    never_computed = ("blocks.2.", "tower.dino.norm.", "tower.siglip.norm.", "attn_pool.")
    assert not [name for name in without if not any(part in name for part in never_computed)]


def test_weights_depend_on_the_seed_alone(vla: VLA, request: pytest.FixtureRequest) -> None:
    """Catches construction that reads, or moves, the global generators."""
    factory = POLICIES[request.node.callspec.params["vla"]]
    state = torch.random.get_rng_state()
    torch.manual_seed(5)
    same, other = factory(1), factory(2)
    torch.random.set_rng_state(state)
    factory(3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, vla.state_dict()[name]) for name, value in same.state_dict().items())
    assert not torch.equal(other.llm.layers[0].self_attn.q_proj.weight, vla.llm.layers[0].self_attn.q_proj.weight)


def test_a_checkpoint_is_the_same_policy(vla: VLA, tmp_path: Path) -> None:
    """Catches anything that decides an action and is not in the checkpoint."""
    vla.heads_trained = ("token",)
    save_policy(tmp_path / "checkpoint", vla, env=ENV, stage="sft")
    loaded = load_policy(tmp_path / "checkpoint")
    rows, keys = observations(vla, 6), [(3, index) for index in range(6)]
    ours, theirs = (TorchPolicy(each).act(rows, noise_keys=keys, temperature=1.6) for each in (vla, loaded))
    np.testing.assert_array_equal(ours.logprobs_BKA, theirs.logprobs_BKA)
    np.testing.assert_array_equal(ours.actions_BKA, theirs.actions_BKA)
    assert loaded.heads_trained == ("token",) and loaded.architecture == vla.architecture


def adapted(vla: VLA) -> VLA:
    """A copy with adapters that were trained for a few steps."""
    policy = apply_lora(copy.deepcopy(vla), LoraConfig(rank=4, alpha=8), seed=3)
    rows = observations(policy, 4)
    images = torch.from_numpy(np.stack([row.images_NHWC for row in rows]))
    proprio = torch.from_numpy(np.stack([row.proprio_P for row in rows]))
    text = policy.encode_text([row.instruction for row in rows])
    trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        torch.logsumexp(policy(images, proprio, *text)[..., :200], dim=-1).mean().backward()
        assert all(parameter.grad is not None for parameter in trainable), "an adapter is never computed"
        optimizer.step()
    return policy


def test_adapters_start_neutral_and_train_alone(vla: VLA) -> None:
    """Catches a reference that training moves, and adapters that change the policy before the first step."""
    rows = observations(vla, 4)
    before, state = logits(vla, rows), torch.random.get_rng_state()
    fresh = apply_lora(copy.deepcopy(vla), LoraConfig(rank=4, alpha=8), seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(logits(fresh, rows), before)
    assert all("lora_" in name for name, parameter in fresh.named_parameters() if parameter.requires_grad)
    trained = adapted(vla)
    after = logits(trained, rows)
    assert (after - before).abs().max() > 0.1
    with trained.disable_adapter():
        assert torch.equal(logits(trained, rows), before)
    assert torch.equal(logits(trained, rows), after)


def test_the_merged_copy_is_a_plain_policy_with_the_same_answers(vla: VLA) -> None:
    """Catches a merge with the wrong scale and one that touches the original."""
    rows, trained = observations(vla, 4), adapted(vla)
    before = logits(trained, rows)
    merged = merged_copy(trained)
    assert not has_adapters(merged) and has_adapters(trained)
    assert set(merged.state_dict()) == set(vla.state_dict())
    torch.testing.assert_close(logits(merged, rows), before, atol=1e-4, rtol=0)
    assert torch.equal(logits(trained, rows), before)
    assert all(parameter.requires_grad for parameter in merged.parameters())


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_decoding_undoes_encoding_to_half_a_bin(vla: VLA, data: st.DataObject) -> None:
    """Catches bins that are shifted or statistics that are applied one way only."""
    low, high = np.array(vla.action_statistics.low), np.array(vla.action_statistics.high)
    unit = data.draw(st.lists(st.floats(0, 1), min_size=len(low), max_size=len(low)))
    actions = low + np.array(unit) * (high - low)
    decoded = vla.decode_actions(vla.encode_actions(actions[None, None]))[0, 0]
    half_bin = (high - low) / (vla.architecture.num_bins - 1) / 2
    assert (np.abs(decoded - actions) <= half_bin + 1e-6).all()

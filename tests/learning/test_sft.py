"""Supervised fine-tuning: what a label is, what a checkpoint says, and that either method starts from the other's."""

import json
import multiprocessing
import os
import signal
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from learning.conftest import FakeTracker, context_json

from components.sft.learning import augment, cross_entropy, soft_labels
from gripline import progress, stages, stopping
from gripline.checkpoint import read_manifest
from gripline.config import SftConfig
from gripline.demos.dataset import DemoSet
from gripline.errors import UserError
from gripline.seen_states import unpacked
from gripline.store import fetch


def test_soft_labels_are_distributions_around_their_bin():
    targets = soft_labels(256, 12.0)
    np.testing.assert_allclose(targets.sum(1), 1.0, rtol=1e-5)
    assert torch.equal(targets.argmax(1), torch.arange(256))
    # one sigma away the density is exp(-1/2) of the peak
    assert float(targets[100, 112] / targets[100, 100]) == pytest.approx(np.exp(-0.5), rel=1e-4)
    assert torch.equal(soft_labels(4, 0), torch.eye(4))


def test_with_hard_labels_it_is_the_ordinary_cross_entropy():
    logits = torch.randn(5, 2, 3, 16)
    tokens = torch.randint(16, (5, 2, 3))
    expected = torch.nn.functional.cross_entropy(logits.reshape(-1, 16), tokens.reshape(-1))
    assert float(cross_entropy(logits, tokens, soft_labels(16, 0))) == pytest.approx(float(expected), rel=1e-5)


def test_augmentation_shifts_within_bounds_and_is_drawn_from_its_generator():
    image = np.zeros((1, 1, 9, 9, 3), np.uint8)
    image[0, 0, 4, 4] = 200
    config = SftConfig(shift_px=2, brightness=(0.5, 0.5))
    seen = set()
    for seed in range(60):
        shifted = augment(image, config, np.random.default_rng(seed))[0, 0, :, :, 0]
        ((row, column),) = np.argwhere(shifted)
        assert shifted[row, column] == 100
        seen.add((row, column))
        assert abs(row - 4) <= 2 and abs(column - 4) <= 2
    assert len(seen) > 15
    again = [augment(image, config, np.random.default_rng(7)) for _ in range(2)]
    assert np.array_equal(*again)


def test_the_checkpoint_says_what_it_was_made_from(tuned):
    profile, _, splits, uri = tuned
    manifest = read_manifest(fetch(uri))
    assert manifest.heads_trained == ("token",)
    assert manifest.contract.suite == "toy" and manifest.contract.hold_steps == profile.env.hold_steps
    assert manifest.provenance.split_hashes == splits.hashes
    assert len(manifest.provenance.data_hash) == 64
    shown = {task: unpacked(text) for task, text in manifest.provenance.seen_states.items()}
    allowed = {(spec.task, spec.init_seed) for name in ("train", "val") for spec in splits.lists[name]}
    assert shown.keys() == set(profile.env.tasks) and all(shown.values())
    assert all((task, seed) in allowed for task, seeds in shown.items() for seed in seeds)


def test_a_given_checkpoint_is_handed_on_without_training(tuned, tmp_path):
    from components.sft import train as sft

    profile, _, splits, uri = tuned
    section = stages.SftStage(env=profile.env, policy=profile.policy, sft=profile.sft, seed=1)

    def hand_on(env_changes: dict[str, object]) -> dict:
        changed = section.model_copy(update={"env": profile.env.model_copy(update=env_changes)})
        return sft.run(
            context=context_json(tmp_path, splits),
            config=changed.model_dump_json(),
            demos_path=str(tmp_path / "none"),
            checkpoint_uri=uri,
        )

    assert hand_on({})["uri"] == uri
    with pytest.raises(UserError, match=r"contract\.hold_steps.*made for 4, the environment has 8"):
        hand_on({"hold_steps": 8})


def test_lora_sft_makes_a_checkpoint_that_needs_no_adapter(tuned, tmp_path):
    from components.sft import train as sft
    from gripline.policies import load_policy

    profile, splits_path, splits, _ = tuned
    config = profile.sft.model_copy(update={"method": "lora", "steps": 6, "eval_every": 3})
    section = stages.SftStage(env=profile.env, policy=profile.policy, sft=config, seed=1)
    result = sft.run(
        context=context_json(tmp_path, splits),
        config=section.model_dump_json(),
        demos_path=str(splits_path.parent / "demos"),
        checkpoint_uri="",
    )
    vla = load_policy(fetch(result["uri"]))
    assert not any("lora" in name for name, _ in vla.named_parameters())
    assert (fetch(result["uri"]) / "lora_adapter").is_dir()


def _tune_and_die(arguments: dict[str, str], killed_at: int) -> None:
    """SFT that saves its state at every third step, in a process of its own, which SIGKILL ends after a step."""
    from components.sft import train as sft
    from gripline import progress, tracking

    save = sft._save_state

    def emit(stage: str, event: str, *, done: int = 0, **rest: object) -> None:
        if event == "advance" and done == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    progress.emit, tracking.stage_run = emit, lambda context, stage: nullcontext(FakeTracker())
    sft._save_state = lambda learner, path, step: step % 3 or save(learner, path, step)
    sft.run(**arguments, state_every_s=0.0)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_sft_killed_in_the_middle_and_resumed_is_sft_in_one_go(tuned, tmp_path, method):
    """Catches: a batch, a dropout mask, an Adam moment or a row of the curve that a resume draws or counts anew."""
    from components.sft import train as sft
    from gripline.config import LoraConfig

    profile, splits_path, splits, _ = tuned
    lora = LoraConfig(rank=4, alpha=8, dropout=0.3)
    config = profile.sft.model_copy(update={"method": method, "lora": lora, "steps": 9, "eval_every": 3})
    section = stages.SftStage(env=profile.env, policy=profile.policy, sft=config, seed=1)
    whole, parts = (
        {
            "context": context_json(tmp_path / name, splits),
            "config": section.model_dump_json(),
            "demos_path": str(splits_path.parent / "demos"),
            "checkpoint_uri": "",
        }
        for name in ("whole", "parts")
    )
    sft.run(**whole)
    process = multiprocessing.get_context("spawn").Process(target=_tune_and_die, args=(parts, 8))
    process.start()
    process.join(100)
    assert process.exitcode == -signal.SIGKILL
    assert torch.load(tmp_path / "parts" / "sft" / "state.pt", weights_only=True)["step"] == 6
    sft.run(**parts)
    first, second = (_result(tmp_path / name) for name in ("whole", "parts"))
    assert first == second and len(first[0]) == 9


@pytest.mark.parametrize("remote", [False, True])
def test_sft_that_is_asked_to_stop_keeps_its_last_step(tuned, tmp_path, monkeypatch, remote):
    """Catches: a minute of training that an orphan throws away; steps that are trained twice."""
    from components.sft import train as sft

    profile, splits_path, splits, _ = tuned
    section = stages.SftStage(
        env=profile.env, policy=profile.policy, sft=profile.sft.model_copy(update={"steps": 9}), seed=1
    )
    context = stages.RunContext.model_validate_json(context_json(tmp_path, splits))

    def tune(run_dir: str) -> dict:
        return sft.run(
            context=context.model_copy(update={"run_dir": run_dir}).model_dump_json(),
            config=section.model_dump_json(),
            demos_path=str(splits_path.parent / "demos"),
            checkpoint_uri="",
        )

    steps, emit = [], progress.emit

    def emit_and_ask(stage, event, *, done=0, **rest):
        emit(stage, event, done=done, **rest)
        if event == "advance":
            steps.append(done)
            if len(steps) == 4:
                stopping.request("the launcher is gone")

    run_dir = f"memory://{tmp_path.name}/run" if remote else str(tmp_path / "run")
    monkeypatch.setattr(progress, "emit", emit_and_ask)
    with pytest.raises(stopping.StopRequestedError):
        tune(run_dir)
    stopping.clear()
    resumed = tune(run_dir)
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    weights = [fetch(result["uri"]) / "model.safetensors" for result in (resumed, tune(str(tmp_path / "whole")))]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def _result(folder: Path) -> tuple[list[str], bytes]:
    """(the curve's rows, the weights)."""
    rows = (folder / "sft" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(len(rows)))
    return rows, (folder / "sft" / "checkpoint" / "model.safetensors").read_bytes()


def test_dropout_is_drawn_from_seed_and_step(tuned):
    """Catches: a step whose result depends on what the process drew before; a mask that is the same at every step."""
    from components.sft.learning import SupervisedLearner
    from gripline.config import LoraConfig
    from gripline.policies import load_policy
    from gripline.policies.lora import apply_lora

    profile, splits_path, _, uri = tuned
    demos = DemoSet.load(splits_path.parent / "demos")

    def losses(dropout: float, *, disturb: int) -> list[float]:
        torch.manual_seed(disturb)
        vla = apply_lora(load_policy(fetch(uri)), LoraConfig(rank=4, alpha=8, dropout=dropout), seed=1)
        for name, parameter in vla.named_parameters():
            if "lora_B" in name:  # they begin as zeros, where dropout changes nothing
                torch.nn.init.constant_(parameter, 0.05)
        learner = SupervisedLearner(vla, demos, demos, profile.sft.model_copy(update={"lr": 1e-9}), seed=1)
        drawn = torch.random.get_rng_state()
        found = [learner._step(step) for step in (3, 3, 4)]
        assert torch.equal(torch.random.get_rng_state(), drawn)
        return found

    with_dropout = losses(0.3, disturb=1)
    assert with_dropout == losses(0.3, disturb=2)
    assert with_dropout[0] == pytest.approx(with_dropout[1], rel=1e-5)
    assert with_dropout != losses(0.0, disturb=1)


def test_an_unreadable_dataset_is_one_line(tmp_path):
    with pytest.raises(UserError, match="not a readable demonstration set"):
        DemoSet.load(tmp_path)
    (tmp_path / "demos.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(UserError, match="not a readable demonstration set"):
        DemoSet.load(tmp_path)

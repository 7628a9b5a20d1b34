"""The learner's own arithmetic: learning rate, minibatches, and what the first update is checked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from components.rl.actors import LearnerActor
from components.rl.learner import Learner
from gripline.config import RlConfig
from gripline.store import fetch
from gripline.types import Trajectory

CONFIG = RlConfig(lr=6e-4, iterations=11, warmup_iterations=5, lr_final_fraction=0.5, minibatch_chunks=4, epochs=2)


@pytest.fixture
def learner(tuned):
    return Learner(fetch(tuned[3]), CONFIG, seed=1)


def _trajectory(learner, chunks: int) -> Trajectory:
    """What a policy server would have recorded: behaviour log-probs are the learner's own."""
    rng = np.random.default_rng(chunks)
    shape = (chunks, learner.vla.architecture.num_actions, learner.vla.architecture.action_dim)
    trajectory = Trajectory(
        instruction="touch the red square",
        images_TNHWC=rng.integers(0, 256, (chunks, 1, 16, 16, 3), dtype=np.uint8),
        proprio_TP=np.zeros((chunks, 2), np.float32),
        tokens_TKA=rng.integers(0, 256, shape),
        logprobs_TKA=np.zeros(shape, np.float32),
    )
    from gripline.policies.inference import token_logprobs

    with torch.no_grad():
        batch = learner.batch([trajectory], [1.0])
        logprobs = token_logprobs(learner._logits(batch), batch.tokens_UKA, CONFIG.temperature).numpy()
    return Trajectory(
        trajectory.instruction, trajectory.images_TNHWC, trajectory.proprio_TP, trajectory.tokens_TKA, logprobs
    )


def test_learning_rate_by_hand(learner):
    assert learner.learning_rate(0) == pytest.approx(1e-4)
    assert learner.learning_rate(4) == pytest.approx(5e-4)
    # half way through the cosine: the mean of lr and lr / 2
    assert learner.learning_rate(5) == pytest.approx(6e-4 * 0.75)
    assert learner.learning_rate(10) == pytest.approx(3e-4)


def test_every_epoch_visits_every_chunk_once_in_an_order_of_its_own(learner):
    parts = [part.tolist() for part in learner._minibatches(10, iteration=3)]
    assert [len(part) for part in parts] == [5, 5, 5, 5]
    first, second = parts[0] + parts[1], parts[2] + parts[3]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert parts == [part.tolist() for part in learner._minibatches(10, iteration=3)]


def test_an_update_makes_what_was_good_likelier(learner):
    good, bad = _trajectory(learner, 6), _trajectory(learner, 5)
    before = learner.batch([good], [1.0])
    assert learner.logprob_gap(before) < 1e-5
    metrics = learner.update(learner.batch([good, bad], [1.0, -1.0]), iteration=4)
    assert metrics["chunks"] == 11
    ratio = {name: _gain(learner, trajectory) for name, trajectory in (("good", good), ("bad", bad))}
    assert ratio["good"] > 0 > ratio["bad"]


def _gain(learner, trajectory: Trajectory) -> float:
    from gripline.policies.inference import token_logprobs

    batch = learner.batch([trajectory], [1.0])
    with torch.no_grad():
        now = token_logprobs(learner._logits(batch), batch.tokens_UKA, CONFIG.temperature)
    return float((now - batch.behaviour_logprobs_UKA).mean())


def test_wrong_behaviour_logprobs_are_refused_before_anything_is_learned(tuned):
    import ray

    actor = LearnerActor(str(fetch(tuned[3])), CONFIG, seed=1)
    before = actor.weights()
    trajectory = _trajectory(actor._learner, 4)
    wrong = replace(trajectory, logprobs_TKA=trajectory.logprobs_TKA + 0.1)
    answer = actor.update([ray.put(wrong)], [1.0], 0, num_old=0)
    assert answer == {"refused": pytest.approx(0.1, abs=1e-4)}
    assert all(np.array_equal(before[name], value) for name, value in actor.weights().items())
    assert "logprob_gap" in actor.update([ray.put(trajectory)], [1.0], 0, num_old=0)
    assert "logprob_gap" not in actor.update([ray.put(trajectory)], [1.0], 1, num_old=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["full", "lora"])
def test_on_a_gpu_it_learns_what_it_learns_on_the_cpu(tuned, tmp_path, method):
    """Catches: a tensor left on the other device; state or weights that only one kind of device can read."""
    config = CONFIG.model_copy(update={"method": method, "kl_coef": 0.1})
    learners = {device: Learner(fetch(tuned[3]), config, seed=1, device=device) for device in ("cpu", "cuda")}
    trajectories = [_trajectory(learners["cpu"], chunks) for chunks in (6, 5)]
    metrics = {}
    for device, learner in learners.items():
        assert next(learner.vla.parameters()).device.type == device
        batch = learner.batch(trajectories, [1.0, -1.0])
        assert learner.logprob_gap(batch) < 1e-3
        metrics[device] = learner.update(batch, iteration=4)
    assert metrics["cuda"]["loss"] == pytest.approx(metrics["cpu"]["loss"], abs=1e-3)
    torch.save(learners["cuda"].state(), tmp_path / "learner.pt")
    learners["cpu"].load_state(torch.load(tmp_path / "learner.pt", weights_only=True, map_location="cpu"))
    learners["cuda"].load_state(torch.load(tmp_path / "learner.pt", weights_only=True, map_location="cpu"))
    first, second = learners["cpu"].weights(), learners["cuda"].weights()
    assert all(np.allclose(first[name], second[name], atol=1e-6) for name in first)
    assert learners["cuda"].update(learners["cuda"].batch(trajectories, [1.0, -1.0]), iteration=5)["chunks"] == 11

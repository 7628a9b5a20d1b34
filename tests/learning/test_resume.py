"""RL stopped and resumed: bit for bit the run that was never stopped."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from learning.conftest import context_json

from gripline import stages


def _train(tuned, folder: Path, iterations: int, **changes):
    from components.rl import train as rl

    profile, splits_path, splits, uri = tuned
    section = stages.RlStage(
        env=profile.env,
        rollout=profile.rollout,
        rl=profile.rl.model_copy(update={"iterations": 4, **changes}),
        seed=profile.seed,
    )
    stopped = rl.Trainer.train if iterations == 4 else _stop_after(iterations)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl.Trainer, "train", stopped)
        return rl.run(
            context=context_json(folder, splits),
            config=section.model_dump_json(),
            policy_uri=uri,
            splits_path=str(splits_path),
        )


class _KilledError(Exception):
    """The process is gone."""


def _stop_after(iterations: int):
    from components.rl import train as rl

    checkpoint = rl.Trainer._checkpoint
    whole = rl.Trainer.train

    def train(self, engine, learner):
        def checkpoint_and_die(trainer):
            checkpoint(trainer)
            if trainer.state.iteration == iterations:
                raise _KilledError

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rl.Trainer, "_checkpoint", checkpoint_and_die)
            return whole(self, engine, learner)

    return train


def _weights(uri: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(Path(uri) / "model.safetensors")


KEPT = {"surplus": "keep", "min_mixed_groups": 1, "allocation": "adaptive"}


@pytest.mark.parametrize(
    "changes",
    [{"method": "full"}, {"method": "lora"}, KEPT, {"overlap": True, "checkpoint_every": 2, "validate_every": 4}],
    ids=["full", "lora", "kept groups", "overlap"],
)
def test_two_iterations_resumed_to_four_equal_four_in_one_go(tuned, tmp_path, changes):
    whole = _train(tuned, tmp_path / "whole", 4, **changes)
    with pytest.raises(_KilledError):
        _train(tuned, tmp_path / "parts", 2, **changes)
    resumed = _train(tuned, tmp_path / "parts", 4, **changes)

    def curve(folder: str) -> list[dict[str, float]]:
        rows = [json.loads(line) for line in (tmp_path / folder / "rl" / "metrics.jsonl").read_text().splitlines()]
        return [
            {
                key: row[key]
                for key in row
                if not key.startswith("rollout/") and not key.endswith(("seconds", "logprob_gap"))
            }
            for row in rows
        ]

    assert curve("parts") == curve("whole")
    assert resumed["env_steps"] == whole["env_steps"]
    first, second = _weights(whole["uri"]), _weights(resumed["uri"])
    assert all(np.array_equal(first[name], second[name]) for name in first)
    before = _weights(tuned[3])
    tensors = [
        torch.load(tmp_path / folder / "rl" / "state" / "iteration-000004" / "learner.pt", weights_only=True)["model"]
        for folder in ("whole", "parts")
    ]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    trained = {name: tensors[0][name].numpy() for name in before if name in tensors[0]}
    assert "lora" in changes.values() or any(not np.array_equal(trained[name], before[name]) for name in trained)

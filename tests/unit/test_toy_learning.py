"""The whole learning chain on the toy world: demonstrations, SFT, RL with exact resume, evaluation on any workers."""

import json
from pathlib import Path

import numpy as np
import pytest

from gripline import stages
from gripline.config import Profile
from gripline.metrics import read_metrics
from gripline.splits import build_splits

PROFILE = {
    "name": "toy",
    "env": {
        "suite": "toy",
        "tasks": ["toy-red", "toy-blue"],
        "image_size_px": 16,
        "hold_steps": 4,
        "horizon_steps": 32,
    },
    "splits": {"train_per_task": 40, "val_per_task": 4, "iid_per_task": 6, "ood_per_task": 2, "ablation_per_task": 3},
    "demos": {"per_task": 3, "workers": 1},
    "sft": {"steps": 30, "batch_size": 16, "eval_every": 15, "threads": 1},
    "rl": {
        "iterations": 4,
        "groups_per_task": 2,
        "group_size": 4,
        "min_mixed_groups": 1,
        "checkpoint_every": 2,
        "validate_every": 2,
        "env_workers": 1,
        "slots_per_worker": 4,
        "learner_threads": 1,
        "lr": 1e-3,
    },
    "eval": {"env_workers": 1, "slots_per_worker": 4},
}


class FakeTracker:
    """Remembers what is logged; stands in for MLflow."""

    def __init__(self):
        self.metrics = []

    def log_metrics(self, metrics, step=0, on="stage"):
        self.metrics.append((step, dict(metrics)))

    def log_params(self, params, on="stage"):
        pass

    def log_artifact(self, path, folder="", on="stage"):
        assert Path(path).exists()

    def set_tags(self, tags, on="stage"):
        pass


@pytest.fixture(scope="module", autouse=True)
def _one_ray_cluster():
    """Started once: every stage joins the cluster that its process already has."""
    from gripline.rollout.engine import ray_cluster

    with ray_cluster(num_env_workers=4):
        yield


@pytest.fixture(autouse=True)
def _no_mlflow(monkeypatch):
    from contextlib import contextmanager

    from gripline import tracking

    @contextmanager
    def stage_run(context, stage):
        yield FakeTracker()

    monkeypatch.setattr(tracking, "stage_run", stage_run)


def _context(folder: Path, splits) -> str:
    return stages.RunContext(
        run_name=folder.name,
        run_dir=str(folder),
        tracking_uri="",
        experiment="",
        parent_run_id="",
        profile_name="toy",
        seed=1,
        split_hashes=splits.hashes,
    ).model_dump_json()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """(profile, splits file, URI of an SFT checkpoint), made once."""
    from components.demos import collect
    from components.sft import train as sft
    from gripline import tracking

    folder = tmp_path_factory.mktemp("toy")
    profile = Profile.model_validate(PROFILE)
    splits = build_splits(profile)
    splits.write(folder / "splits.json")
    demos = stages.DemosStage(
        env=profile.env, splits=profile.splits, variation=profile.variation, demos=profile.demos, num_actions=1, seed=1
    )
    collect.run(config=demos.model_dump_json(), demos_path=str(folder / "demos"), checkpoint_uri="")
    section = stages.SftStage(env=profile.env, policy=profile.policy, sft=profile.sft, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        from contextlib import nullcontext

        patch.setattr(tracking, "stage_run", lambda context, stage: nullcontext(FakeTracker()))
        result = sft.run(
            context=_context(folder, splits),
            config=section.model_dump_json(),
            demos_path=str(folder / "demos"),
            checkpoint_uri="",
        )
    losses = [row["train/loss"] for row in read_metrics(folder / "sft" / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.5
    return profile, folder / "splits.json", splits, result["uri"]


def _train(tuned, folder: Path, iterations: int, **changes):
    from components.rl import train as rl

    profile, splits_path, splits, uri = tuned
    section = stages.RlStage(
        env=profile.env, rl=profile.rl.model_copy(update={"iterations": 4, **changes}), seed=profile.seed
    )
    stopped = rl.Trainer.train if iterations == 4 else _stop_after(iterations)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl.Trainer, "train", stopped)
        return rl.run(
            context=_context(folder, splits),
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


@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_iterations_resumed_to_four_equal_four_in_one_go(tuned, tmp_path, method):
    whole = _train(tuned, tmp_path / "whole", 4, method=method)
    with pytest.raises(_KilledError):
        _train(tuned, tmp_path / "parts", 2, method=method)
    resumed = _train(tuned, tmp_path / "parts", 4, method=method)

    def curve(folder: str) -> list[dict[str, float]]:
        rows = [json.loads(line) for line in (tmp_path / folder / "rl" / "metrics.jsonl").read_text().splitlines()]
        return [
            {key: row[key] for key in row if "seconds" not in key and not key.startswith("rollout/")} for row in rows
        ]

    assert curve("parts") == curve("whole")
    assert resumed["env_steps"] == whole["env_steps"]
    first, second = _weights(whole["uri"]), _weights(resumed["uri"])
    assert all(np.array_equal(first[name], second[name]) for name in first)
    before = _weights(tuned[3])
    changed = any(not np.array_equal(first[name], before[name]) for name in first)
    assert changed or whole["best_iteration"] == 0


def test_evaluation_is_bit_equal_for_1_2_and_4_workers(tuned, tmp_path):
    from components.eval import evaluate

    profile, splits_path, splits, uri = tuned
    files = []
    for workers in (1, 2, 4):
        section = stages.EvalStage(
            env=profile.env,
            eval=profile.eval.model_copy(update={"env_workers": workers, "slots_per_worker": 3}),
            seed=1,
        )
        path = tmp_path / f"{workers}.jsonl"
        evaluate.run(
            context=_context(tmp_path / str(workers), splits),
            config=section.model_dump_json(),
            splits_path=str(splits_path),
            policy_uri=uri,
            stage="sft",
            results_path=str(path),
        )
        files.append(path.read_bytes())
    assert files[0] == files[1] == files[2]
    assert len(files[0].splitlines()) == len(splits.tested)

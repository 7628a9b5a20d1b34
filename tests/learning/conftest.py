"""The learning chain on the toy world, without simulator and MLflow: one Ray cluster, one SFT policy for all tests."""

from pathlib import Path

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
        "learner_threads": 1,
        "lr": 1e-3,
    },
    "rollout": {"env_workers": 1, "slots_per_worker": 4},
}


class FakeTracker:
    """Remembers what is logged; stands in for MLflow."""

    def __init__(self):
        self.metrics = []

    def log_metrics(self, metrics, step=0, on="stage"):
        self.metrics.append((step, dict(metrics)))

    def log_params(self, params, on="stage"):
        pass

    def log_note(self, markdown, on="stage"):
        assert markdown

    def log_artifact(self, path, folder="", on="stage"):
        assert Path(path).exists()

    def log_table(self, name, rows, on="stage"):
        assert rows

    def set_tags(self, tags, on="stage"):
        pass


@pytest.fixture(scope="session", autouse=True)
def _one_ray_cluster(shared_ray):
    """Every stage joins the cluster that its process already has."""


@pytest.fixture(autouse=True)
def _no_mlflow(monkeypatch):
    from contextlib import contextmanager

    from gripline import tracking

    @contextmanager
    def stage_run(context, stage):
        yield FakeTracker()

    monkeypatch.setattr(tracking, "stage_run", stage_run)


def context_json(folder: Path, splits) -> str:
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


@pytest.fixture(scope="session")
def tuned(tmp_path_factory):
    """(profile, splits file, splits, URI of an SFT checkpoint), made once."""
    return tune(tmp_path_factory.mktemp("toy"), Profile.model_validate(PROFILE))


def tune(folder: Path, profile: Profile):
    """Demonstrations and SFT of a profile, in a folder: (profile, splits file, splits, URI of the checkpoint)."""
    from contextlib import nullcontext

    from components.demos import collect
    from components.sft import train as sft
    from gripline import tracking

    splits = build_splits(profile)
    splits.write(folder / "splits.json")
    demos = stages.DemosStage(
        env=profile.env, splits=profile.splits, variation=profile.variation, demos=profile.demos, num_actions=1, seed=1
    )
    collect.run(config=demos.model_dump_json(), demos_path=str(folder / "demos"), checkpoint_uri="")
    section = stages.SftStage(env=profile.env, policy=profile.policy, sft=profile.sft, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "stage_run", lambda context, stage: nullcontext(FakeTracker()))
        result = sft.run(
            context=context_json(folder, splits),
            config=section.model_dump_json(),
            demos_path=str(folder / "demos"),
            checkpoint_uri="",
        )
    losses = [row["train/loss"] for row in read_metrics(folder / "sft" / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.5
    return profile, folder / "splits.json", splits, result["uri"]


@pytest.fixture(scope="module")
def toy_engine(tuned):
    """A rollout engine with the policy of `tuned`, for tests that need no one of their own: a start takes seconds."""
    from gripline.rollout.engine import standard_engine

    profile, _, _, uri = tuned
    with standard_engine(profile.env, uri, profile.rollout) as engine:
        yield engine

"""RL is continued with the inputs that it was begun with, or not at all. No Ray, no torch."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from components.rl import train
from gripline import profiles, tracking
from gripline.checkpoint import Contract, Manifest, Provenance, new_checkpoint
from gripline.errors import UserError
from gripline.inputs import RunInputs
from gripline.splits import build_splits
from gripline.stages import RlStage, RunContext


class _StartedError(Exception):
    """The stage took its inputs and begins to work."""


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Begins RL of profile smoke; keyword arguments change its inputs."""

    class Tracker:
        def log_params(self, params: object) -> None:
            pass

        def log_metrics(self, metrics: object, step: int) -> None:
            pass

    def start(*arguments: object) -> None:
        raise _StartedError

    monkeypatch.setattr(tracking, "stage_run", lambda context, stage: nullcontext(Tracker()))
    monkeypatch.setattr(train, "_actors", start)

    def run(*, policy: str = "first", tested: int = 0, lr: float = 1e-3, guard: str = "warn") -> None:
        profile = profiles.load("smoke", [f"splits.seed={tested}", f"rl.lr={lr}", f"rl.guard.mode={guard}"])
        splits = build_splits(profile)
        splits.write(tmp_path / "splits.json")
        context = RunContext(
            run_name="run",
            run_dir=str(tmp_path / "run"),
            tracking_uri="",
            experiment="",
            parent_run_id="",
            profile_name="smoke",
            seed=1,
            split_hashes=splits.hashes,
        )
        stage = RlStage(env=profile.env, rollout=profile.rollout, rl=profile.rl, seed=1)
        train.run(
            context=context.model_dump_json(),
            config=stage.model_dump_json(),
            policy_uri=str(_checkpoint(tmp_path / policy)),
            splits_path=str(tmp_path / "splits.json"),
        )

    return run


def _checkpoint(folder: Path) -> Path:
    """Different folders are different checkpoints."""
    contract = Contract(
        suite="metaworld",
        cameras=("front",),
        image_size_px=64,
        proprio_dim=0,
        action_dim=4,
        action_low_A=(-1.0,) * 4,
        action_high_A=(1.0,) * 4,
        num_actions=1,
        num_bins=256,
    )
    provenance = Provenance(stage="sft", data_hash=folder.name)
    if not folder.exists():
        with new_checkpoint(folder, Manifest(policy="t", contract=contract, heads_trained=(), provenance=provenance)):
            pass
    return folder


@pytest.mark.parametrize("change", [{"policy": "second"}, {"tested": 1}, {"lr": 1e-4}, {"guard": "penalise"}])
def test_other_inputs_are_refused_and_the_same_are_continued(begin: Any, change: dict[str, Any]) -> None:
    """Catches: a state trained on other episodes, or of another policy, that goes on under a new name."""
    for _ in range(2):
        with pytest.raises(_StartedError):
            begin()
    with pytest.raises(UserError, match="begun with other inputs"):
        begin(**change)


def test_a_guard_that_only_watches_may_be_changed(begin: Any, tmp_path: Path) -> None:
    """Catches: a run that the guard stopped and that its user cannot continue."""
    for mode in ("stop", "warn", "off"):
        with pytest.raises(_StartedError):
            begin(guard=mode)
    modes = {mode: RunInputs(profiles.load("smoke", [f"rl.guard.mode={mode}"])) for mode in ("stop", "off", "penalise")}
    modes["stop"].write(tmp_path)
    assert not modes["off"].difference(tmp_path)
    assert "rl.guard.mode" in modes["penalise"].difference(tmp_path)

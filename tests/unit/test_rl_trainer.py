"""The outer loop of RL on a scripted engine and learner: no Ray, no simulator, no torch."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest

from components.rl import train as rl
from components.rl.train import STARVING_LIMIT, Trainer
from gripline import profiles, stopping
from gripline.checkpoint import Contract, Manifest, Provenance, new_checkpoint, read_manifest
from gripline.errors import UserError
from gripline.metrics import MetricsLog, read_metrics
from gripline.rollout import trace
from gripline.rollout.stats import RolloutStats
from gripline.rollout.trace import TraceEvent
from gripline.seen_states import seen_in, united
from gripline.splits import build_splits
from gripline.stages import RlStage, RunContext
from gripline.store import RunStore, read_once, written
from gripline.types import Conduct, EpisodeRecord, EpisodeSpec, Trajectory

CONTRACT = Contract(
    suite="metaworld",
    cameras=("front",),
    image_size_px=64,
    proprio_dim=0,
    action_dim=4,
    action_low_A=(-1.0,) * 4,
    action_high_A=(1.0,) * 4,
    num_actions=1,
    hold_steps=8,
    num_bins=256,
)

PARENT_HAS_SEEN = "BwAAAA=="
"""Init seed 7."""


def write_policy(folder: Path, name: str, provenance: Provenance | None = None) -> None:
    """A checkpoint whose weights are a word."""
    provenance = provenance or Provenance(stage="sft")
    with new_checkpoint(
        folder, Manifest(policy="t", contract=CONTRACT, heads_trained=(), provenance=provenance)
    ) as new:
        (new / "weights").write_text(name)


@dataclass
class Finished:
    index: int
    record: EpisodeRecord
    trajectory: Any


class ScriptedEngine:
    """Says how each episode ends."""

    num_workers = 1
    record_trace = False

    def __init__(
        self, succeeds: Callable[[EpisodeSpec], bool], conduct: Callable[[EpisodeSpec], Conduct | None]
    ) -> None:
        self._succeeds, self._conduct = succeeds, conduct
        self.last = RolloutStats()
        self.trace: list[TraceEvent] = []
        self._clock_s = 0.0

    def set_weights(self, weights: object) -> None:
        pass

    def without_trajectory(self, episodes: object) -> list[Finished]:
        return []

    def run(self, specs: list[EpisodeSpec], decoding: Any, useless: Any = None) -> Iterator[Finished]:
        self.last = RolloutStats(episodes=len(specs), env_steps=8 * len(specs), wall_s=1.0)
        for index, spec in enumerate(specs):
            success = self._succeeds(spec)
            record = EpisodeRecord(
                spec=spec, success=success, num_steps=8, num_chunks=1, actions_TKA=(), conduct=self._conduct(spec)
            )
            arrays = (np.zeros((1, 1, 4, 4, 3), np.uint8), np.zeros((1, 2), np.float32), np.zeros((1, 1, 4), np.int64))
            episode = Finished(index, record, Trajectory("push", *arrays, np.zeros((1, 1, 4), np.float32)))
            if useless is not None:
                useless(episode)
            yield episode
        if self.record_trace:
            label = f"{len(specs)} of {specs[0].split}"
            self.trace.append(TraceEvent("step", "worker 0/slot 0", self._clock_s, self._clock_s + 1, label))
        self._clock_s += 1


class Method:
    """Such as an actor's: called by `.remote`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.remote = function


class CountingLearner:
    """Its weights are the number of its updates."""

    def __init__(self) -> None:
        self.updates = 0
        self.advantages: list[list[float]] = []
        self.update, self.weights = Method(self._update), Method(lambda: {})
        self.save_state, self.load_state = Method(self._save_state), Method(self._load_state)
        self.save_policy = Method(self._save_policy)

    def _update(
        self, trajectories: list[Any], advantages: list[float], iteration: int, num_old: int
    ) -> dict[str, float]:
        assert len(trajectories) == len(advantages) > 0
        self.updates += 1
        self.advantages.append(advantages)
        return {"loss": 0.0}

    def _save_state(self, uri: str) -> None:
        with written(uri) as path:
            path.write_text(str(self.updates))

    def _load_state(self, uri: str) -> None:
        with read_once(uri) as path:
            self.updates = int(path.read_text())

    def _save_policy(self, uri: str, env: object, provenance: dict[str, Any]) -> None:
        with written(uri) as folder:
            shutil.rmtree(folder, ignore_errors=True)
            write_policy(folder, str(self.updates), Provenance(**provenance))


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """References are the things themselves."""
    import ray

    monkeypatch.setattr(ray, "get", lambda reference: reference)
    monkeypatch.setattr(ray, "put", lambda value: value)


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Trains in `run_dir` as one process would; `iterations` and other fields of the RL section may be changed."""
    provenance = Provenance(stage="sft", seen_states={"elsewhere": PARENT_HAS_SEEN})
    write_policy(tmp_path / "sft", "start", provenance)

    def train(
        run_dir: str,
        succeeds: Callable[[EpisodeSpec], bool],
        *,
        learner: CountingLearner | type[CountingLearner] = CountingLearner,
        conduct: Callable[[EpisodeSpec], Conduct | None] = lambda spec: None,
        after_iteration: Callable[[int], None] = lambda step: None,
        **changes: object,
    ) -> dict[str, Any]:
        overrides = [f"rl.{name}={value}" for name, value in changes.items()]
        profile = profiles.load("smoke", ["rollout.trace_every=1", *overrides])
        splits = build_splits(profile)
        context = RunContext(
            run_name="run",
            run_dir=run_dir,
            tracking_uri="",
            experiment="",
            parent_run_id="",
            profile_name="smoke",
            seed=1,
            split_hashes=splits.hashes,
        )
        stage = RlStage(env=profile.env, rollout=profile.rollout, rl=profile.rl, seed=1)
        store = RunStore(run_dir)
        log = MetricsLog(store.local / "rl" / "metrics.jsonl", lambda metrics, step: after_iteration(step))
        make_trainer = partial(Trainer, stage, context, store, str(tmp_path / "sft"), splits, "f", log)

        def actors(stage: RlStage, policy_uri: str) -> Any:
            return nullcontext((ScriptedEngine(succeeds, conduct), learner() if isinstance(learner, type) else learner))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rl, "_actors", actors)
            return rl._train(make_trainer, stage)[1]

    return train


class MortalLearner(CountingLearner):
    """Its machine is lost at these updates, counted over all learners."""

    lost_at: ClassVar[set[int]] = set()
    num_made = num_updates = 0
    init_failed = False

    def __init__(self) -> None:
        type(self).num_made += 1
        super().__init__()

    def _update(self, *arguments: Any, **options: Any) -> dict[str, float]:
        import ray

        type(self).num_updates += 1
        if self.num_updates in self.lost_at:
            raise ray.exceptions.RayActorError(actor_init_failed=self.init_failed)
        return super()._update(*arguments, **options)


@pytest.mark.parametrize("lost_at", [{1}, {4}, {2, 4, 5, 8}])
def test_a_lost_learner_costs_the_iterations_since_the_last_state_and_no_more(
    tmp_path: Path, attempt: Callable[..., dict[str, Any]], lost_at: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a policy pod whose loss ends the attempt; a curve with an iteration twice; a state that is skipped."""

    class Learner(MortalLearner):
        pass

    Learner.lost_at = lost_at
    changes = {"iterations": 6, "checkpoint_every": 2, "validate_every": 6}
    outputs = attempt(str(tmp_path / "run"), lambda spec: spec.member == 0, learner=Learner, **changes)
    assert outputs["iterations"] == 6 and Learner.num_made == len(lost_at) + 1
    assert capsys.readouterr().out.count("learner or experience lost") == len(lost_at)
    rows = read_metrics(tmp_path / "run" / "rl" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(6))
    assert (tmp_path / "run" / "rl" / "state" / "iteration-000006" / "learner.pt").read_text() == "6"


@pytest.mark.parametrize(("init_failed", "tries"), [(False, rl.MAX_LOSSES + 1), (True, 1)])
def test_a_learner_that_is_lost_again_and_again_ends_the_stage(
    tmp_path: Path, attempt: Callable[..., dict[str, Any]], init_failed: bool, tries: int
) -> None:
    """One that cannot even be built is not built again: it would fail for the same reason."""
    import ray

    class Learner(MortalLearner):
        lost_at: ClassVar[set[int]] = set(range(100))

    Learner.init_failed = init_failed
    with pytest.raises(ray.exceptions.RayActorError):
        attempt(str(tmp_path / "run"), lambda spec: spec.member == 0, learner=Learner, iterations=4)
    assert Learner.num_made == tries


@pytest.mark.parametrize(("success", "told"), [(True, "all episodes succeed"), (False, "all episodes fail")])
def test_rl_that_has_nothing_to_learn_from_stops_and_hands_on_what_it_has(
    tmp_path: Path, attempt: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str], success: bool, told: str
) -> None:
    """Catches: a day of rollouts without one update; a stage that ends without a policy, or with an unvalidated one."""
    learner = CountingLearner()
    outputs = attempt(str(tmp_path / "run"), lambda spec: success, learner=learner, iterations=10)
    assert (outputs["iterations"], learner.updates) == (STARVING_LIMIT, 0)
    assert outputs["validation_success"] == float(success)
    assert f"[rl] warn stopped: in {STARVING_LIMIT} iterations no group with mixed outcomes; lately {told}" in (
        capsys.readouterr().out
    )
    checkpoint = tmp_path / "run" / "rl" / "checkpoint"
    provenance = read_manifest(checkpoint).provenance
    assert outputs["uri"] == str(checkpoint) and provenance.stage == "rl"
    lists = build_splits(profiles.load("smoke")).lists
    trained = seen_in([*lists["train"], *lists["val"]])
    assert provenance.seen_states == united(trained, {"elsewhere": PARENT_HAS_SEEN}), "of its own, and of its parent"
    rows = read_metrics(tmp_path / "run" / "rl" / "metrics.jsonl")
    assert [(row["step"], row["train/mixed_groups"]) for row in rows] == [(step, 0.0) for step in range(STARVING_LIMIT)]


def test_one_mixed_group_is_enough_to_go_on(tmp_path: Path, attempt: Callable[..., dict[str, Any]]) -> None:
    """Catches: a count of hungry iterations that is not begun anew, which would stop RL in its middle."""
    learner = CountingLearner()

    def every_third(spec: EpisodeSpec) -> bool:
        return spec.split == "train" and spec.group % 3 == 2 and spec.member == 0

    outputs = attempt(str(tmp_path / "run"), every_third, learner=learner, iterations=9)
    assert (outputs["iterations"], learner.updates) == (9, 3)
    rows = read_metrics(tmp_path / "run" / "rl" / "metrics.jsonl")
    assert ["learn/loss" in row for row in rows] == [False, False, True] * 3


def test_the_latest_of_the_best_validated_policies_is_handed_on(
    tmp_path: Path, attempt: Callable[..., dict[str, Any]]
) -> None:
    """Catches: the last policy instead of the best, and the weights of one with the record of another."""
    learner = CountingLearner()

    def best_after_two(spec: EpisodeSpec) -> bool:
        return spec.member == 0 if spec.split == "train" else learner.updates == 2

    outputs = attempt(
        str(tmp_path / "run"), best_after_two, learner=learner, iterations=4, validate_every=1, checkpoint_every=1
    )
    assert (outputs["best_iteration"], outputs["validation_success"]) == (2, 1.0)
    assert (tmp_path / "run" / "rl" / "checkpoint" / "weights").read_text() == "2"
    assert [path.name for path in (tmp_path / "run" / "rl" / "best").iterdir()] == ["iteration-000002"]
    state = json.loads((tmp_path / "run" / "rl" / "state" / "iteration-000004" / "state.json").read_text())
    assert (state["best_iteration"], state["version"]) == (2, 4)


def test_a_remote_store_holds_what_a_resume_needs_and_no_more(
    tmp_path: Path, attempt: Callable[..., dict[str, Any]]
) -> None:
    """Catches: a bucket that fills with old states and policies, a curve that begins anew in the next pod."""

    class DyingLearner(CountingLearner):
        def _update(self, *arguments: Any, **options: Any) -> dict[str, float]:
            if self.updates == 3:
                raise ConnectionError("the pod is gone")
            return super()._update(*arguments, **options)

    def learns(learner: CountingLearner) -> Callable[[EpisodeSpec], bool]:
        return lambda spec: spec.member == 0 if spec.split == "train" else spec.init_seed % 4 < learner.updates

    files, bucket = fsspec.filesystem("memory"), f"/{tmp_path.name}"

    def stored() -> list[str]:
        return sorted(path.removeprefix(f"{bucket}/rl/") for path in files.find(f"{bucket}/rl"))

    changes = {"iterations": 4, "validate_every": 1, "checkpoint_every": 1, "keep_checkpoints": 1}
    state = ["groups.safetensors", "learner.pt", "state.json"]
    dying = DyingLearner()
    with pytest.raises(ConnectionError):
        attempt(f"memory:/{bucket}", learns(dying), learner=dying, **changes)
    best = [f"best/iteration-000003/{name}" for name in ("manifest.json", "weights")]
    assert stored() == [*best, "metrics.jsonl", *(f"state/iteration-000003/{name}" for name in state)]

    learner = CountingLearner()
    outputs = attempt(f"memory:/{bucket}", learns(learner), learner=learner, **changes)
    assert (learner.updates, outputs["best_iteration"]) == (4, 4)
    best = [
        f"{folder}/{name}"
        for folder in ("best/iteration-000004", "checkpoint")
        for name in ("manifest.json", "weights")
    ]
    assert stored() == [*best, "metrics.jsonl", *(f"state/iteration-000004/{name}" for name in state)]
    rows = [json.loads(line) for line in files.cat_file(f"{bucket}/rl/metrics.jsonl").splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert files.cat_file(f"{bucket}/rl/checkpoint/weights") == b"4"


@pytest.fixture
def asked() -> Iterator[Callable[[int], Callable[[int], None]]]:
    """Asks the stage to stop in the middle of an iteration."""
    yield lambda at: lambda step: stopping.request("the launcher is gone") if step == at else None
    stopping.clear()


@pytest.mark.parametrize("remote", [False, True])
def test_a_stop_is_obeyed_after_an_iteration_with_a_checkpoint_and_nothing_is_lost(
    tmp_path: Path, attempt: Callable[..., dict[str, Any]], asked: Any, remote: bool
) -> None:
    """Catches: hours since the last checkpoint that an orphan throws away; an iteration that is run twice."""
    run_dir = f"memory://{tmp_path.name}/run" if remote else str(tmp_path / "run")

    def mixed(spec: EpisodeSpec) -> bool:
        return spec.split == "train" and spec.member == 0

    changes = {"iterations": 6, "checkpoint_every": 100, "validate_every": 100}
    with pytest.raises(stopping.StopRequestedError, match="the launcher is gone"):
        attempt(run_dir, mixed, after_iteration=asked(2), **changes)
    stopping.clear()
    states = [name for name in RunStore(run_dir).files("rl/state") if name.endswith("state.json")]
    assert states == ["rl/state/iteration-000003/state.json"]
    learner, steps = CountingLearner(), []
    outputs = attempt(run_dir, mixed, learner=learner, after_iteration=steps.append, **changes)
    assert (steps, learner.updates, outputs["iterations"]) == ([3, 4, 5], 6, 6)


def test_a_stop_in_the_last_iteration_changes_nothing(
    tmp_path: Path, attempt: Callable[..., dict[str, Any]], asked: Any
) -> None:
    run_dir = str(tmp_path / "run")
    assert attempt(run_dir, lambda spec: spec.member == 0, after_iteration=asked(1), iterations=2)["iterations"] == 2
    assert (tmp_path / "run" / "rl" / "checkpoint" / "manifest.json").exists()


def test_experience_that_was_sampled_ahead_is_learned_from_before_it_stops(
    tmp_path: Path, attempt: Callable[..., dict[str, Any]], asked: Any
) -> None:
    """Catches: groups that count as drawn in the state, and that nobody ever learned from."""
    run_dir, learner = str(tmp_path / "run"), CountingLearner()
    changes = {"iterations": 9, "checkpoint_every": 100, "validate_every": 100, "overlap": "true"}
    with pytest.raises(stopping.StopRequestedError):
        attempt(run_dir, lambda spec: spec.member == 0, learner=learner, after_iteration=asked(2), **changes)
    state = json.loads((tmp_path / "run" / "rl" / "state" / "iteration-000004" / "state.json").read_text())
    assert (state["iteration"], state["version"], learner.updates) == (4, 4, 4)
    per_iteration = profiles.load("smoke").rl.groups_per_task
    assert set(state["drawn"].values()) == {4 * per_iteration}


def test_an_attempt_that_was_superseded_writes_no_state(tmp_path: Path, attempt: Callable[..., dict[str, Any]]) -> None:
    """Catches: the state of a new attempt that the old one overwrites with an earlier one."""
    run_dir = str(tmp_path / "run")

    def fence() -> None:
        raise stopping.SupersededError("a newer attempt owns the run")

    def supersede(step: int) -> None:
        if step == 1:
            stopping.set_fence(fence)

    try:
        with pytest.raises(stopping.SupersededError):
            attempt(run_dir, lambda spec: spec.member == 0, after_iteration=supersede, iterations=4, checkpoint_every=1)
    finally:
        stopping.clear()
    assert [path.name for path in (tmp_path / "run" / "rl" / "state").iterdir()] == ["iteration-000001"]


class Hacker:
    """A policy whose success comes with more and more force, as its updates teach it."""

    def __init__(self) -> None:
        self.learner = CountingLearner()

    def succeeds(self, spec: EpisodeSpec) -> bool:
        return spec.member % 2 == 0

    def conduct(self, spec: EpisodeSpec) -> Conduct:
        pushes = spec.split == "val" or spec.member in (0, 4)  # every other success
        return Conduct(peak_contact_force_n=20.0 + 10.0 * self.learner.updates * pushes)


HACKING = {"iterations": 8, "checkpoint_every": 100, "validate_every": 100, "group_size": 8, "groups_per_task": 2}


@pytest.mark.parametrize("mode", ["off", "warn"])
def test_a_guard_that_watches_changes_nothing_that_is_learned(
    tmp_path: Path, attempt: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    hacker = Hacker()
    changes = HACKING | {"guard.mode": mode}
    outputs = attempt(str(tmp_path / "run"), hacker.succeeds, learner=hacker.learner, conduct=hacker.conduct, **changes)
    assert outputs["iterations"] == 8
    assert np.allclose(np.abs(hacker.learner.advantages), 0.9354, atol=1e-4)
    told = [line for line in capsys.readouterr().out.splitlines() if "warn guard" in line]
    assert len(told) == (mode == "warn") and all(
        "above the limit 40 (2 x the SFT policy's 20)" in line for line in told
    )
    rows = read_metrics(tmp_path / "run" / "rl" / "metrics.jsonl")
    forces = [row["guard/train/conduct/peak_contact_force_n"] for row in rows]
    assert forces == [20.0 + 5.0 * update for update in range(8)]
    assert "guard/val/conduct/peak_contact_force_n" in rows[-1]


def test_reward_hacking_stops_rl_with_a_checkpoint_and_goes_on_when_the_user_says_so(
    tmp_path: Path, attempt: Callable[..., dict[str, Any]]
) -> None:
    """Catches: a GPU day spent on a policy that hits its goal, a stop that loses work, one that cannot be overruled."""
    run_dir = str(tmp_path / "run")
    for hacker in (Hacker(), Hacker()):  # the second start stops at once
        with pytest.raises(UserError, match="above the limit 40") as caught:
            attempt(
                run_dir,
                hacker.succeeds,
                learner=hacker.learner,
                conduct=hacker.conduct,
                **HACKING,
                **{"guard.mode": "stop"},
            )
        assert caught.value.field == "rl.guard.peak_contact_force_n" and "\n" not in caught.value.line
        states = [path.name for path in (tmp_path / "run" / "rl" / "state").iterdir()]
        assert states == ["iteration-000006"] and hacker.learner.updates == 6
    outputs = attempt(
        run_dir,
        hacker.succeeds,
        learner=hacker.learner,
        conduct=hacker.conduct,
        **HACKING,
        **{"guard.mode": "warn"},
    )
    assert (outputs["iterations"], hacker.learner.updates) == (8, 8)


def test_penalties_turn_learning_away_from_force(tmp_path: Path, attempt: Callable[..., dict[str, Any]]) -> None:
    """Catches: penalties that reach the failures, or that come before there is a level to compare with."""
    hacker = Hacker()
    changes = HACKING | {"guard.mode": "penalise", "guard.peak_contact_force_n.factor": 1.4, "normalise_std": "false"}
    attempt(str(tmp_path / "run"), hacker.succeeds, learner=hacker.learner, conduct=hacker.conduct, **changes)
    groups = [np.array(advantages).reshape(-1, 8) for advantages in hacker.learner.advantages]
    plain = np.array([0.5, -0.5] * 4)
    pushing_is_worse = np.array([0.5, 0.0, 1.0, 0.0, 0.5, 0.0, 1.0, 0.0]) - 3 / 8
    for update, advantages in enumerate(groups):
        assert np.allclose(advantages, pushing_is_worse if update else plain), update


def test_the_timeline_of_an_iteration_shows_all_its_rounds_and_no_validation(
    tmp_path: Path, attempt: Callable[..., dict[str, Any]]
) -> None:
    """Catches: one round for the whole iteration; a validation, or an earlier iteration, in its picture."""
    changes = {"iterations": 3, "validate_every": 1, "max_rounds": 2, "min_mixed_groups": 6, "groups_per_task": 2}
    outputs = attempt(str(tmp_path / "run"), lambda spec: spec.member == 0, **changes)
    assert outputs["iterations"] == 3
    files = sorted((tmp_path / "run" / "rl" / "trace").glob("iteration-*.json"))
    assert len(files) == 3
    for file in files:
        labels = [event.label for event in trace.read(file)]
        assert len(labels) == 2 and all(label.endswith("of train") for label in labels), file.name

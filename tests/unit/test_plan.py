"""The plan stage: everything is checked before anything is made, and each stage gets its own section only."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest

from components.plan import plan
from gripline import profiles
from gripline.cluster_config import ClusterConfig
from gripline.errors import UserError
from gripline.splits import Splits, build_splits
from gripline.stages import (
    CONTEXT_FILE,
    STEP_IMAGE,
    DemosStage,
    EvalStage,
    PromoteStage,
    RlStage,
    RunContext,
    SftStage,
)


class FakeTracking:
    """Stands for MLflow: remembers which parents it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.tags: dict[str, str] = {}
        self.params: Mapping[str, Any] = {}

    def ensure_parent(
        self, tracking_uri: str, experiment: str, run_name: str, *, tags: Mapping[str, str], params: Mapping[str, Any]
    ) -> str:
        self.asked.append((tracking_uri, experiment, run_name))
        self.tags, self.params = dict(tags), params
        return f"parent-of-{run_name}"


@pytest.fixture
def tracking(monkeypatch: pytest.MonkeyPatch) -> FakeTracking:
    fake = FakeTracking()
    monkeypatch.setattr(plan, "ensure_parent", fake.ensure_parent)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("KUBECONFIG", "/nonexistent")
    return fake


def run_plan(folder: Path, **changes: Any) -> plan.Plan:
    arguments: dict[str, Any] = {
        "profile": "smoke",
        "run_name": "first",
        "job_id": "job-7",
        "seed": -1,
        "checkpoint_uri": "",
        "image": "registry/step:1",
        "tracking_uri": "",
        "store_uri": str(folder / "store"),
        "splits_path": str(folder / "splits.json"),
    }
    return plan.run(**arguments | changes)


def test_sections_split_the_profile_up(tmp_path: Path, tracking: FakeTracking) -> None:
    """Catches: a section that lost a value of the profile, or holds what its stage has no business with."""
    profile = profiles.load("smoke")
    planned = run_plan(tmp_path)
    demos = DemosStage.model_validate_json(planned.demos)
    assert (demos.env, demos.demos, demos.variation) == (profile.env, profile.demos, profile.variation)
    assert build_splits(demos).hashes == build_splits(profile).hashes
    assert SftStage.model_validate_json(planned.sft).sft == profile.sft
    assert EvalStage.model_validate_json(planned.evaluate).eval == profile.eval
    assert RlStage.model_validate_json(planned.rl).rl == profile.rl
    assert PromoteStage.model_validate_json(planned.promote).promote == profile.promote

    changed = run_plan(tmp_path, profile=profiles.dump(profiles.load("smoke", ["rl.lr=1e-5"])), run_name="second")
    differing = {name for name in plan.Plan._fields if getattr(planned, name) != getattr(changed, name)}
    assert differing == {"context", "rl"}


def test_where_stages_run_is_no_part_of_what_they_do(tmp_path: Path, tracking: FakeTracking) -> None:
    """Catches: a raised time limit after which a finished stage seems to have other inputs; a pod without an image."""
    where = ["cluster.stages=[rl]", "cluster.policy.image=registry/policy:1", "cluster.retries=7"]
    remote = {"store_uri": f"memory://{tmp_path.name}", "tracking_uri": "http://127.0.0.1:9"}
    planned = run_plan(tmp_path, **remote)
    changed = run_plan(tmp_path, profile=profiles.dump(profiles.load("smoke", where)), run_name="second", **remote)
    differing = {name for name in plan.Plan._fields if getattr(planned, name) != getattr(changed, name)}
    assert differing == {"context", "cluster"}
    assert ClusterConfig.model_validate_json(planned.cluster).stages == ()
    cluster = ClusterConfig.model_validate_json(changed.cluster)
    assert cluster.retries == 7
    images = (cluster.head.image, cluster.policy.image, cluster.env.image)
    assert images == ("registry/step:1", "registry/policy:1", "registry/step:1")


def test_a_cluster_that_is_not_ready_is_told_before_anything_is_made(
    tmp_path: Path, tracking: FakeTracking, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: hours of SFT before a RayJob whose pods cannot see the store, which is a folder here."""
    with pytest.raises(UserError, match=r"cluster: store: .* is a folder, which the pods of a cluster do not share"):
        run_plan(tmp_path, profile=profiles.dump(profiles.load("smoke", ["cluster.stages=[rl]"])))
    assert tracking.asked == [] and list(tmp_path.iterdir()) == []
    told = capsys.readouterr().out
    assert "[plan] note ✓ images" in told and "[plan] warn ✗ store" in told and "– cluster     not checked" in told


def test_context_splits_and_parent(tmp_path: Path, tracking: FakeTracking) -> None:
    planned = run_plan(tmp_path, seed=5)
    context = RunContext.model_validate_json(planned.context)
    assert context.run_dir == f"{tmp_path}/store/first"
    assert (context.seed, context.parent_run_id) == (5, "parent-of-first")
    assert Splits.read(tmp_path / "splits.json").hashes == context.split_hashes
    assert tracking.asked == [(f"sqlite:///{tmp_path}/store/mlflow.db", "gripline", "first")]
    assert tracking.tags["gripline.job_id"] == "job-7" and tracking.params["seed"] == 5
    kept = Path(context.run_dir)
    assert RunContext.model_validate_json((kept / CONTEXT_FILE).read_text()) == context
    assert profiles.load(str(kept / "profile.yaml")).seed == 5


def test_run_is_named_by_the_job_unless_told_otherwise(tmp_path: Path, tracking: FakeTracking) -> None:
    assert json.loads(run_plan(tmp_path, run_name="").context)["run_dir"].endswith("/store/job-7")


@pytest.mark.parametrize(
    ("parameter", "profile_uri", "variable", "expected"),
    [
        ("http://given", "http://profile", "http://env", "http://given"),
        ("", "http://profile", "http://env", "http://profile"),
        ("", "", "http://env", "http://env"),
    ],
)
def test_tracking_uri_is_the_nearest_given(
    tmp_path: Path,
    tracking: FakeTracking,
    monkeypatch: pytest.MonkeyPatch,
    parameter: str,
    profile_uri: str,
    variable: str,
    expected: str,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    text = profiles.dump(profiles.load("smoke", [f"tracking.uri={profile_uri}"] if profile_uri else []))
    assert json.loads(run_plan(tmp_path, profile=text, tracking_uri=parameter).context)["tracking_uri"] == expected


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"profile": "smoke\n"}, "is not a mapping"),
        ({"profile": "name: x\nenv: {tasks: [nosuch-v3]}\n"}, "unknown task 'nosuch-v3'"),
        ({"store_uri": ""}, "store_uri: is empty"),
        ({"store_uri": "memory://runs"}, "tracking_uri: is empty"),
        ({"store_uri": "gopher://runs", "tracking_uri": "http://mlflow"}, "gopher://runs/first/.*: cannot be used"),
        ({"tracking_uri": "http://me:secret@mlflow"}, "http://mlflow: tracking_uri: holds a password"),
        ({"checkpoint_uri": "/no/such"}, "/no/such: does not exist"),
        ({"checkpoint_uri": "memory://no/such", "tracking_uri": "http://mlflow"}, "manifest.json: does not exist"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(
    tmp_path: Path, tracking: FakeTracking, changes: dict[str, str], told: str
) -> None:
    """Catches: an MLflow run or a run folder for a run that never was."""
    with pytest.raises(UserError, match=told):
        run_plan(tmp_path, **changes)
    assert tracking.asked == []
    assert list(tmp_path.iterdir()) == []


def test_same_name_continues_the_same_run_and_refuses_another(tmp_path: Path, tracking: FakeTracking) -> None:
    """A run's name may be given again on purpose: a retried pipeline. Catches: two runs in one folder of the store."""
    first = run_plan(tmp_path)
    assert run_plan(tmp_path) == first
    with pytest.raises(UserError, match="run_name: is a run of other inputs: seed is 3 here, 1 there"):
        run_plan(tmp_path, seed=3)


def test_a_run_is_continued_with_more_workers_and_other_time_limits(tmp_path: Path, tracking: FakeTracking) -> None:
    """Catches: a run that ran into its deadline and is refused when it is started again with a longer one."""
    run_plan(tmp_path)
    changes = ["rollout.env_workers=2", "rollout.step_timeout_s=5", "cluster.overall_timeout_s=90000"]
    longer = profiles.dump(profiles.load("smoke", changes))
    assert ClusterConfig.model_validate_json(run_plan(tmp_path, profile=longer).cluster).overall_timeout_s == 90000
    with pytest.raises(UserError, match=r"is a run of other inputs: rl.lr is 0.0001 here"):
        run_plan(tmp_path, profile=profiles.dump(profiles.load("smoke", [*changes, "rl.lr=1e-4"])))


def test_remote_store_holds_the_record(tmp_path: Path, tracking: FakeTracking) -> None:
    """Catches: a record that stays in the pod's own file system."""
    store = f"memory://{tmp_path.name}"
    run_plan(tmp_path, store_uri=store, tracking_uri="http://mlflow")
    files = fsspec.filesystem("memory")
    kept = {path.rsplit("/", 1)[1] for path in files.ls(f"/{tmp_path.name}/first", detail=False)}
    assert kept == {"profile.yaml", "checkpoint.txt", CONTEXT_FILE}
    with pytest.raises(UserError, match="seed is 3 here"):
        run_plan(tmp_path, store_uri=store, tracking_uri="http://mlflow", seed=3)


def test_a_password_of_the_environment_is_written_nowhere(
    tmp_path: Path, tracking: FakeTracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a password in context.json, in the profile, in a step's parameters or in MLflow's."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:pa55word@mlflow:5000")
    planned = run_plan(tmp_path)
    assert RunContext.model_validate_json(planned.context).tracking_uri == "https://mlflow:5000"
    assert "pa55word" not in " ".join(planned) + repr(vars(tracking))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not [path for path in written if b"pa55word" in path.read_bytes()]


def test_step_image_is_of_this_version() -> None:
    import gripline

    assert STEP_IMAGE.endswith(f":{gripline.__version__}")

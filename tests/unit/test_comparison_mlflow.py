"""`gripline compare` on runs in MLflow: found by their own id, by an evaluation's, by that of their KFP run."""

import json
from pathlib import Path
from typing import Any

import pytest
from unit.test_comparison import episodes, run_cli, run_folder

from gripline import delivery, profiles
from gripline.comparison import Comparison
from gripline.errors import UserError
from gripline.evaluated_runs import read_evaluation
from gripline.results import write_results
from gripline.stages import RunContext
from gripline.summary import compare, summarise_policy
from gripline.tables import policy_metrics
from gripline.tracking import ensure_parent
from gripline.types import EpisodeRecord

JOB = "0b1f7e0e-8a5c-4c1e-9a55-{:012d}"


@pytest.fixture
def client(mlflow_uri: str) -> Any:
    return delivery.connect(mlflow_uri)


def tracked_run(uri: str, client: Any, folder: Path, seed: int, **policies: list[EpisodeRecord]) -> dict[str, str]:
    """A run as its stages track it: ids of the pipeline's run and of each evaluation's."""
    profile = profiles.load("laptop", seed=seed)
    tags = {"gripline.profile": "laptop", "gripline.seed": str(seed), "gripline.job_id": JOB.format(seed)}
    parent = ensure_parent(uri, "tests", folder.name, tags=tags, params=profile.model_dump(mode="json"))
    context = RunContext(
        run_name=folder.name,
        run_dir=str(folder),
        tracking_uri=uri,
        experiment="tests",
        parent_run_id=parent,
        profile_name="laptop",
        seed=seed,
        split_hashes={},
    )
    ids = {"parent": parent}
    for policy, records in policies.items():
        stage = delivery.Target(client, {"context": context.model_dump(mode="json"), "stage": f"eval-{policy}"})
        results = folder / f"eval-{policy}" / "results.jsonl"
        write_results(results, records)
        metrics = policy_metrics(summarise_policy(records))
        stage.apply(
            [
                {"op": "metrics", "on": "stage", "metrics": metrics, "step": 0, "time_ms": 1},
                {"op": "artifact", "on": "stage", "path": str(results), "folder": "", "temporary": False},
            ]
        )
        ids[policy] = stage.stage_run_id
    return ids


def test_runs_in_mlflow_are_compared(
    mlflow_uri: str, client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command on a store. Catches: an id of any kind that is not found, a seed or a pair that gets lost."""
    old = tracked_run(mlflow_uri, client, tmp_path / "old", 1, sft=episodes(4), rl=episodes(8))
    tracked_run(mlflow_uri, client, tmp_path / "new", 2, sft=episodes(4), rl=episodes(15))
    third = run_folder(tmp_path / "third", 3, rl=12)
    runs = (old["parent"], JOB.format(2), third, old["sft"])
    out = (tmp_path / "compare.json", tmp_path / "compare.html")
    code, shown, errors = run_cli(capsys, *runs, "--tracking", mlflow_uri, "--json", out[0], "--out", out[1])
    assert (code, errors) == (0, [])
    found = Comparison.model_validate_json(out[0].read_text())
    assert [(run.name, run.seed) for run in found.runs] == [("old", 1), ("new", 2), ("third", 3), ("old SFT", 1)]
    assert [pair.difference["iid"].difference for pair in found.pairs] == pytest.approx([0.35, 0.2, -0.2])
    assert (
        found.pairs[0].difference["task/faucet-open"] == compare(episodes(8), episodes(15)).per_task["faucet-open"].iid
    )
    assert [(group.runs, group.seeds) for group in found.groups] == [(("old", "new", "third"), (1, 2, 3))]
    assert "75 [60, 86]" in shown
    assert "old SFT minus old" in out[1].read_text()


def test_a_folders_context_names_the_store(
    mlflow_uri: str, client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: an address that has to be given although a run folder beside knows it."""
    ids = tracked_run(mlflow_uri, client, tmp_path / "old", 1, rl=episodes(8))
    folder = run_folder(tmp_path / "new", 2, rl=15)
    context = json.loads((folder / "context.json").read_text())
    (folder / "context.json").write_text(json.dumps(context | {"tracking_uri": mlflow_uri}))
    code, shown, errors = run_cli(capsys, ids["parent"], folder)
    assert (code, errors) == (0, [])
    assert "+35 [+22, +50]" in shown


def test_a_run_without_its_episodes_is_told_by_its_metrics(
    mlflow_uri: str, client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: other people's runs that stop a comparison; the SFT policy's rates taken for the RL's."""
    theirs = client.create_run(client.create_experiment("theirs"), run_name="theirs").info.run_id
    for name, value in {"eval/iid/success": 0.7, "sft/iid/success": 0.3, "eval/iid/ci_low": 0.6, "loss": 1.0}.items():
        client.log_metric(theirs, name, value)
    assert read_evaluation(theirs, "rl", mlflow_uri).metrics == {"eval/iid/success": 0.7, "eval/iid/ci_low": 0.6}
    assert read_evaluation(theirs, "sft", mlflow_uri).metrics == {"eval/iid/success": 0.3}
    folder = run_folder(tmp_path / "new", 2, rl=15)
    code, shown, errors = run_cli(capsys, folder, theirs, "--tracking", mlflow_uri)
    assert (code, errors) == (0, [])
    assert "note: theirs has metrics but no episodes: theirs is not paired with new" in " ".join(shown.split())
    bare = client.create_run(client.create_experiment("bare")).info.run_id
    with pytest.raises(UserError, match=f"MLflow run {bare}: has no evaluation of its RL policy; give --policy sft"):
        read_evaluation(bare, "rl", mlflow_uri)


def test_what_cannot_be_read_from_mlflow_is_one_line(
    mlflow_uri: str, client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a damaged artifact that takes the others away, and MLflow's own errors."""
    ids = [
        tracked_run(mlflow_uri, client, tmp_path / f"run-{seed}", seed, rl=episodes(3 * seed))["rl"]
        for seed in (1, 2, 3)
    ]
    artifact = Path(client.get_run(ids[2]).info.artifact_uri.removeprefix("file://"), "results.jsonl")
    artifact.write_text(artifact.read_text()[:1000])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    code, shown, errors = run_cli(capsys, *ids, "f" * 32, JOB.format(9))
    assert code == 2
    assert errors[0].startswith(f"gripline: MLflow run {ids[2]}: results.jsonl: line ") and "damaged" in errors[0]
    assert errors[1].startswith(f"gripline: {'f' * 32}: no such MLflow run at sqlite:")
    assert errors[2].startswith(f"gripline: {JOB.format(9)}: no MLflow run at sqlite:") and len(errors) == 3
    assert "run-1" in shown and "run-2" in shown and "run-3" not in shown
    code, shown, errors = run_cli(
        capsys, ids[0], run_folder(tmp_path / "new", rl=15), "--tracking", "http://127.0.0.1:9"
    )
    assert (code, len(errors)) == (2, 1)
    assert "MLflow cannot be used" in errors[0] and "75 [60, 86]" in shown
    assert run_cli(capsys, *ids, "--tracking", "http://me:pw@127.0.0.1:9")[2][0].count("pw") == 0


def test_a_folder_and_its_mlflow_run_are_of_the_same_settings(mlflow_uri: str, client: Any, tmp_path: Path) -> None:
    """Catches: a profile that reads differently from YAML and from MLflow's parameters, so that seeds never meet."""
    ids = tracked_run(mlflow_uri, client, tmp_path / "old", 1, rl=episodes(8))
    folder = run_folder(tmp_path / "new", 2, rl=15)
    in_mlflow, on_disk = read_evaluation(ids["rl"], "rl", mlflow_uri), read_evaluation(str(folder), "rl", "")
    assert in_mlflow.settings == on_disk.settings != ""
    assert (in_mlflow.name, in_mlflow.profile, in_mlflow.seed) == ("old", "laptop", 1)
    assert in_mlflow.mlflow_run_id == ids["parent"]
    assert list(in_mlflow.records) == episodes(8)

"""The compiled graph: equal to the committed file, and with the properties that a real backend needs."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from gripline.cluster_config import LONGEST_LAUNCH_S, ClusterConfig
from gripline.stages import STEP_IMAGE, DemosStage, RunContext
from pipelines.cli import main
from pipelines.compile import COMPILED

STEPS = {"plan", "demos", "sft", "evaluate", "gate", "rl", "evaluate-2", "promote"}


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(COMPILED.read_text(encoding="utf-8")))


def test_committed_yaml_is_what_the_code_compiles_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a graph or component that was changed without `gripline compile`."""
    with pytest.raises(SystemExit) as ended:
        main(["compile", "--out", str(tmp_path / "fresh.yaml")])
    assert ended.value.code == 0
    assert (tmp_path / "fresh.yaml").read_text() == COMPILED.read_text(), "run `gripline compile` and commit the file"


def test_compile_refuses_bad_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "graph.txt", tmp_path / "file" / "graph.yaml"):
        with pytest.raises(SystemExit) as ended:
            main(["compile", "--out", str(place)])
        assert ended.value.code == 2
        assert str(place) in capsys.readouterr().err


def test_parameters_are_few_and_typed(documents: list[dict[str, Any]]) -> None:
    """They are the form that a person fills in."""
    parameters = documents[0]["root"]["inputDefinitions"]["parameters"]
    defaults = {name: (one["parameterType"], one["defaultValue"]) for name, one in parameters.items()}
    assert defaults == {
        "profile": ("STRING", "laptop"),
        "seed": ("NUMBER_INTEGER", -1),
        "checkpoint_uri": ("STRING", ""),
        "image": ("STRING", STEP_IMAGE),
        "tracking_uri": ("STRING", ""),
        "store_uri": ("STRING", ""),
        "run_name": ("STRING", ""),
    }


def test_every_step_is_on_the_first_page_with_a_time_limit(documents: list[dict[str, Any]]) -> None:
    """Catches: an exit handler or group that hides the graph in one box, a step that may hang for ever, a set_retry."""
    tasks = documents[0]["root"]["dag"]["tasks"]
    assert tasks.keys() == STEPS
    limits = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert {name.removeprefix("exec-") for name in limits} == STEPS
    assert all(int(limit["activeDeadlineSeconds"]) > 0 for limit in limits.values())
    assert not any("retryPolicy" in task for task in tasks.values())


def test_only_demonstrations_are_cached_and_name_no_run(documents: list[dict[str, Any]]) -> None:
    """Catches: an old checkpoint returned from the cache; a run's id in the demonstrations' key, which never hits."""
    tasks = documents[0]["root"]["dag"]["tasks"]
    cached = {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache", False)}
    assert cached == {"demos"}
    assert tasks["demos"]["inputs"].keys() == {"parameters"}, "an artifact's id is new in every run"
    image = {"base_image", "pipelinechannel--image"}
    assert tasks["demos"]["inputs"]["parameters"].keys() == {"config", "checkpoint_uri"} | image
    assert not DemosStage.model_fields.keys() & RunContext.model_fields.keys() - {"seed"}


def test_steps_that_may_be_rayjobs_know_where_and_wait_long_enough(documents: list[dict[str, Any]]) -> None:
    """Catches: a step that Kubeflow ends before the launcher's own limit, which leaves the RayJob to the other nets."""
    tasks = documents[0]["root"]["dag"]["tasks"]
    told = {name for name, task in tasks.items() if "cluster" in task["inputs"]["parameters"]}
    assert told == {"sft", "evaluate", "rl", "evaluate-2"}
    executors = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert all(int(executors[f"exec-{name}"]["activeDeadlineSeconds"]) > LONGEST_LAUNCH_S for name in told)
    with pytest.raises(ValidationError):
        ClusterConfig(overall_timeout_s=LONGEST_LAUNCH_S + 1)


def test_rl_waits_for_the_gate_and_steps_use_the_image_parameter(documents: list[dict[str, Any]]) -> None:
    tasks = documents[0]["root"]["dag"]["tasks"]
    assert "gate" in tasks["rl"]["dependentTasks"]
    assert tasks["gate"]["inputs"]["artifacts"].keys() == {"policy", "demonstrations", "results"}
    for executor in documents[0]["deploymentSpec"]["executors"].values():
        assert executor["container"]["image"] == "{{$.inputs.parameters['pipelinechannel--image']}}"
        assert "pip install" not in str(executor["container"]["command"])


def test_steps_take_credentials_where_they_exist(documents: list[dict[str, Any]]) -> None:
    """Catches: a step without the store's credentials; a Secret that a cluster without passwords would have to make."""
    for executor in documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        secrets = {each["secretName"]: each for each in executor["secretAsEnv"]}
        assert secrets.keys() == {"gripline-store", "gripline-mlflow"}
        for secret in secrets.values():
            assert secret["optional"] is True
        variables = {pair["secretKey"]: pair["envVar"] for each in secrets.values() for pair in each["keyToEnv"]}
        assert {"AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "MLFLOW_TRACKING_PASSWORD"} <= variables.keys()
        renamed = {key: variable for key, variable in variables.items() if key != variable}
        assert renamed == {"MLFLOW_TRACKING_URI": "GRIPLINE_TRACKING_URI"}


def test_no_step_takes_from_a_secret_what_kubeflows_mlflow_plugin_sets(documents: list[dict[str, Any]]) -> None:
    """Catches: a variable with both a value and a Secret. The API server refuses such a pod, so no step ever starts."""
    plugins = {"MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_WORKSPACE"}
    plugins |= {"MLFLOW_TRACKING_AUTH", "KFP_MLFLOW_CONFIG"}
    for executor in documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        taken = {pair["envVar"] for secret in executor["secretAsEnv"] for pair in secret["keyToEnv"]}
        assert not taken & plugins

"""What several files of tests of single modules share."""

import pytest

from gripline import delivery
from gripline.stages import RunContext
from gripline.tracking import ensure_parent


@pytest.fixture
def client(mlflow_uri):
    return delivery.connect(mlflow_uri)


@pytest.fixture
def context(mlflow_uri, tmp_path):
    parent = ensure_parent(mlflow_uri, "tests", "run-1", tags={"commit": "abc"}, params={"sft": {"lr": 0.001}})
    return RunContext(
        run_name="run-1",
        run_dir=str(tmp_path / "run-1"),
        tracking_uri=mlflow_uri,
        experiment="tests",
        parent_run_id=parent,
        profile_name="laptop",
        seed=3,
        split_hashes={"iid": "0123456789abcdef"},
    )

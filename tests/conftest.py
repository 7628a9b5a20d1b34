"""What tests of several folders share."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from gripline.config import RolloutConfig

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs the tests in the background makes them deaf to Ctrl-C, which the runs they start would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_ray():
    """One Ray cluster for every test that needs one: a start takes ten seconds, and a process has only one."""
    from gripline.rollout.cluster import ray_cluster

    with pytest.MonkeyPatch.context() as patch:  # actors find the tests' fakes
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        with ray_cluster(RolloutConfig(env_workers=8, policy_replicas=2), learners=1):
            yield


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory):
    """A migrated database to copy: making one takes seconds."""
    from gripline import delivery

    folder = tmp_path_factory.mktemp("store")
    delivery.connect(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def mlflow_uri(tmp_path, empty_mlflow, monkeypatch):
    """Of a real MLflow store in a file, which nothing else knows."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "GRIPLINE_TRACKING_URI", "KFP_MLFLOW_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"

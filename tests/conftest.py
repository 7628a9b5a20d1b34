"""What tests of several folders share."""

import os
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

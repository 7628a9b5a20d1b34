"""Tests of the rollout engine with real processes."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_ray_cluster(shared_ray):
    """Every engine joins it."""

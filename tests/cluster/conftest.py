"""Tests against a real API server with simulated nodes. `make test-cluster` brings one up where ../shared/cluster is.

They skip unless KUBECONFIG names a cluster that is made for tests, so that nobody's own is touched: its context is
called `gripline`, or every node of it is labelled `gripline.io/test-cluster`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
import yaml
from cluster.kube import Kube
from cluster.site import Site, World, serve

TEST_CONTEXT, TEST_LABEL = "gripline", "gripline.io/test-cluster"


@pytest.fixture(scope="session")
def kubeconfig() -> Path:
    """Of the administrator of a test cluster with simulated nodes; skips where there is none."""
    named = os.environ.get("KUBECONFIG", "")
    if not named or not Path(named).exists():
        pytest.skip("KUBECONFIG names no cluster; `make test-cluster` brings one up")
    path = Path(named)
    kube = Kube.from_kubeconfig(path)
    try:
        nodes = kube.items("/api/v1/nodes")
    except (urllib3.exceptions.HTTPError, OSError) as error:
        pytest.skip(f"the cluster of KUBECONFIG does not answer: {error}")
    labelled = bool(nodes) and all(TEST_LABEL in node["metadata"].get("labels", {}) for node in nodes)
    if yaml.safe_load(path.read_text())["current-context"] != TEST_CONTEXT and not labelled:
        pytest.skip(f"the cluster of KUBECONFIG is not made for tests: label its nodes {TEST_LABEL} if it is")
    if not any("kwok.x-k8s.io/node" in node["metadata"].get("annotations", {}) for node in nodes):
        pytest.skip("the cluster of KUBECONFIG has no simulated nodes: `cluster up --nodes fake`")
    return path


@pytest.fixture(scope="session")
def kube(kubeconfig: Path) -> Kube:
    """The API server, as administrator."""
    return Kube.from_kubeconfig(kubeconfig)


@pytest.fixture(scope="session")
def world(kube: Kube, kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """What serves the whole cluster."""
    with serve(kube, kubeconfig, tmp_path_factory.mktemp("world")) as served:
        yield served
        assert not served.log_of_problems()


@pytest.fixture
def site(world: World, tmp_path: Path) -> Iterator[Site]:
    """A namespace for one test."""
    made = Site(world, tmp_path)
    try:
        yield made
    finally:
        made.close()

"""Tests on three real nodes, with KubeRay's own operator and our own images: `make e2e-cluster`, `make e2e-kfp`.

They skip, and say why, unless KUBECONFIG names a cluster as `cluster up --nodes real` of ../shared/cluster brings it up
(without --operator: the tests start the one that KUBERAY_OPERATOR names). Variables for building the images (BASE,
TORCH_FROM, BUILDER, BUILD_FLAGS) are those of images/build; E2E_TAG names images that are on the nodes already.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from cluster.e2e.surroundings import (
    BUCKET,
    CPU,
    HOST,
    NAMESPACE,
    ROOT,
    RT,
    TRAIN,
    WHERE,
    Servers,
    free_ports,
    grant,
    remove_namespace,
    served,
)
from cluster.kube import Kube
from cluster.site import RealOperator


@pytest.fixture(scope="session")
def kubeconfig() -> Path:
    """Of the administrator of a cluster with the three real nodes."""
    path = Path(os.environ.get("KUBECONFIG", "/nonexistent"))
    if not path.exists():
        pytest.skip(
            "KUBECONFIG names no cluster: `../shared/cluster/cluster up --nodes real` prints the line that sets it"
        )
    try:
        names = {node["metadata"]["name"] for node in Kube.from_kubeconfig(path).items("/api/v1/nodes")}
    except (urllib3.exceptions.HTTPError, OSError) as error:
        pytest.skip(f"the cluster of KUBECONFIG does not answer: {error}")
    if not {CPU, RT, TRAIN} <= names:
        pytest.skip(f"the cluster of KUBECONFIG has no nodes {CPU}, {RT} and {TRAIN}: `cluster up --nodes real`")
    return path


@pytest.fixture(scope="session")
def kube(kubeconfig: Path) -> Kube:
    """The API server, as administrator."""
    return Kube.from_kubeconfig(kubeconfig)


@pytest.fixture(scope="session")
def operator(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """KubeRay's; the path of its log."""
    binary = Path(os.environ.get("KUBERAY_OPERATOR", "/nonexistent"))
    if not os.access(binary, os.X_OK):
        pytest.skip("KUBERAY_OPERATOR names no binary of KubeRay's operator")
    folder = tmp_path_factory.mktemp("operator")
    running = RealOperator(str(binary), kubeconfig, folder)
    yield folder / "operator.log"
    running.close()


@pytest.fixture(scope="session")
def images(kubeconfig: Path) -> dict[str, str]:
    """Image names by role; built now, and loaded onto the nodes that need them, unless E2E_TAG names others."""
    tag = os.environ.get("E2E_TAG", "")
    names = {role: f"localhost/gripline-{role}:{tag or 'e2e'}" for role in WHERE}
    if tag:
        return names
    loader = Path(os.environ.get("CLUSTER", ROOT.parent / "shared" / "cluster" / "cluster"))
    if not loader.exists():
        pytest.skip("CLUSTER names no tool to load images onto the nodes with, and E2E_TAG no images that are there")
    build = subprocess.run(
        ["make", "images", f"IMAGES={' '.join(WHERE)}", "REGISTRY=localhost/", "TAG=e2e"], cwd=ROOT, text=True
    )
    assert build.returncode == 0, "make images failed"
    for role, nodes in WHERE.items():
        on = [word for node in nodes for word in ("--node", node)]
        subprocess.run([str(loader), "load", names[role], *on], check=True)
    return names


@pytest.fixture(scope="session")
def servers(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A store that speaks S3's protocol, with an empty bucket, and an MLflow server."""
    pytest.importorskip("moto.server", reason="moto, the S3 server, is not installed")
    folder = tmp_path_factory.mktemp("servers")
    ports = free_ports(2)
    s3, mlflow = (f"http://{HOST}:{port}" for port in ports)
    moto = ["moto.server", "-H", HOST, "-p", str(ports[0])]
    tracking = ["mlflow", "server", "--host", HOST, "--port", str(ports[1]), "--workers", "1", "--allowed-hosts", "*"]
    tracking += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "art")]
    with served(moto, f"{s3}/moto-api/", folder), served(tracking, f"{mlflow}/health", folder):
        running = Servers(s3, mlflow)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in running.credentials.items():
                patch.setenv(name, value)
            patch.setenv("no_proxy", HOST)
            import fsspec

            fsspec.filesystem("s3").mkdir(BUCKET)
            yield running


@pytest.fixture(scope="session")
def namespace(kube: Kube, servers: Servers) -> Iterator[str]:
    """A namespace under pod-security `restricted`, with the rights and the network policies that are shipped."""
    remove_namespace(kube, NAMESPACE)
    security = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    kube.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE, "labels": security}})
    grant(kube, NAMESPACE, servers, account="gripline-launcher")
    yield NAMESPACE
    remove_namespace(kube, NAMESPACE)

"""What the tests on real nodes stand on: names, and the servers on this machine that pods reach."""

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from cluster.kube import Kube
from cluster.site import eventually, shipped_rights

ROOT = Path(__file__).parents[3]
CPU, RT, TRAIN = "real-cpu", "real-rt", "real-train"
HOST = "10.200.0.254"
"""This machine, as the pods see it."""
WHERE = {"step": (CPU,), "policy": (CPU, TRAIN), "env-mujoco": (RT,)}
"""Image -> the nodes that pods with it run on."""
NAMESPACE, SECRET, BUCKET = "gripline-e2e", "gripline-store", "e2e"


@dataclass(frozen=True)
class Servers:
    """What runs on this machine, outside of the cluster."""

    s3: str
    mlflow: str

    @property
    def credentials(self) -> dict[str, str]:
        """Environment of whoever uses the store."""
        return {
            "AWS_ENDPOINT_URL": self.s3,
            "AWS_ACCESS_KEY_ID": "e2e",
            "AWS_SECRET_ACCESS_KEY": "e2e-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def profile_text(images: dict[str, str], namespace: str = "") -> str:
    """profile.yaml with the images that were built. namespace: of the RayJobs; empty: the launcher's own."""
    text = (ROOT / "tests/cluster/e2e/profile.yaml").read_text()
    text = text.replace("cluster:\n", f"cluster:\n  namespace: '{namespace}'\n")
    for group, role in (("head", "policy"), ("policy", "policy"), ("env", "env-mujoco")):
        text = text.replace(f"  {group}: {{", f"  {group}: {{image: {images[role]}, ")
    return text


def grant(kube: Kube, namespace: str, servers: Servers, *, account: str) -> None:
    """What docs/on_a_cluster.md has a namespace for runs be given: rights, network policies, the store's credentials.

    account: name of the RoleBinding in manifests/ for whoever launches.
    """
    rights = [*shipped_rights(), *shipped_rights(account), *shipped_rights("gripline-ray")]
    policies = yaml.safe_load_all((ROOT / "manifests/base/runs/network.yaml").read_text())
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": servers.credentials}
    for item in [*rights, *policies, secret]:
        subjects = {"subjects": [{"namespace": namespace} | each for each in item.get("subjects", [])]}
        path = place(namespace, item["apiVersion"], item["kind"])
        named = f"{path}/{item['metadata']['name']}"
        kube.delete(named)  # an earlier session's Secret names a store that is gone
        eventually(lambda named=named: kube.get(named) is None, f"end of {named}")
        kube.create(path, item | (subjects if "subjects" in item else {}))


def remove_namespace(kube: Kube, name: str) -> None:
    """Returns once it is gone."""
    kube.delete(f"/api/v1/namespaces/{name}")
    eventually(lambda: kube.get(f"/api/v1/namespaces/{name}") is None, "end of the namespace", timeout_s=120)


def place(namespace: str, api_version: str, kind: str) -> str:
    """Where objects of a kind are created."""
    group = "/api/v1" if api_version == "v1" else f"/apis/{api_version}"
    plural = f"{kind.lower()[:-1]}ies" if kind.endswith("y") else f"{kind.lower()}s"
    return f"{group}/namespaces/{namespace}/{plural}"


def free_ports(count: int) -> list[int]:
    opened = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in opened]
    for each in opened:
        each.close()
    return ports


@contextmanager
def served(module: list[str], url: str, folder: Path) -> Iterator[None]:
    """A Python module as a server for as long as the block runs; entered once `url` answers."""
    log_path = folder / f"{module[0]}.log"
    with log_path.open("wb") as log:
        command = [sys.executable, "-m", *module]
        quiet = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # else MLflow starts seven more processes
        process = subprocess.Popen(command, env=quiet, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        eventually(
            lambda: process.poll() is None and answers(url), url, timeout_s=300, every_s=0.5, context=log_path.read_text
        )
        yield
    finally:
        process.terminate()
        process.wait(20)


def answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False

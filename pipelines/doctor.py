"""`gripline doctor`: what of this machine is usable, one line each. It reports, and never fails."""

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import psutil

from gripline.credentials import VARIABLE, redacted

TIMEOUT_S = 3.0
Finding = tuple[bool, str]
"""Whether it is usable, and what was found."""


def examine() -> Iterator[tuple[str, bool, str]]:
    """(what, usable, finding) of each probe, in order."""
    for name, probe in PROBES.items():
        try:
            usable, text = probe()
        except Exception as error:  # noqa: BLE001  whatever a broken installation raises is a finding
            usable, text = False, f"{type(error).__name__}: {error}"
        yield name, usable, " ".join(text.split())[:200]


def _machine() -> Finding:
    memory_gb = psutil.virtual_memory().total / 2**30
    return memory_gb >= 6, f"{os.cpu_count()} cores, {memory_gb:.0f} GB memory (profile laptop: 2 cores, 6 GB)"


def _disk() -> Finding:
    free_gb = shutil.disk_usage(Path.cwd()).free / 2**30
    return free_gb >= 2, f"{free_gb:.0f} GB free in {Path.cwd()}"


def _python() -> Finding:
    packages = [f"{name} {_version(name)}" for name in ("gripline", "torch", "transformers", "peft")]
    return True, f"{sys.version.split()[0]}, {', '.join(packages)}"


def _gpu() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return False, "none (no nvidia-smi); everything runs on the CPU"
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    return True, "; ".join(done.stdout.strip().splitlines())


def _rendering() -> Finding:
    from gripline.envs.gl import PACKAGES, probe_renderers

    found = probe_renderers()
    usable = any(answer == "ok" for answer in found.values())
    remedy = "" if usable else f"; apt-get install -y {PACKAGES}"
    return usable, ", ".join(f"{name} {answer}" for name, answer in found.items()) + remedy


def _ray() -> Finding:
    shared_mb = shutil.disk_usage("/dev/shm").free / 2**20
    address = os.environ.get("RAY_ADDRESS", "")
    where = f"joins {address}" if address else f"starts here, {shared_mb:.0f} MB of shared memory free"
    return bool(address) or shared_mb >= 600, f"{_version('ray')}, {where}"


def _mlflow() -> Finding:
    uri = redacted(os.environ.get(VARIABLE, ""))
    if uri.startswith("http"):
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=TIMEOUT_S).close()
        return True, f"{_version('mlflow')}, {uri} answers"
    return True, f"{_version('mlflow')}, {uri or 'an SQLite file beside the run folders'}"


def _pipelines() -> Finding:
    return True, f"kfp {_version('kfp')}; a server is named by `gripline submit --host`"


def _cluster() -> Finding:
    from kubernetes import client, config

    try:
        _, active = config.list_kube_config_contexts()
    except config.ConfigException:
        return False, "no kubeconfig; needed for clusters only"
    api = client.VersionApi(config.new_client_from_config())
    version = api.get_code(_request_timeout=TIMEOUT_S)
    return True, f"{active['name']} answers, Kubernetes {version.git_version}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


PROBES: dict[str, Callable[[], Finding]] = {
    "python": _python,
    "machine": _machine,
    "disk": _disk,
    "gpu": _gpu,
    "rendering": _rendering,
    "ray": _ray,
    "mlflow": _mlflow,
    "pipelines": _pipelines,
    "cluster": _cluster,
}

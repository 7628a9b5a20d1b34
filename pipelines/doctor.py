"""`gripline doctor`: what of this machine is usable, one line each. It reports, and never fails.

`gripline doctor --kube`: the pools of a cluster. It raises UserError where it cannot see them.
"""

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

import psutil

from gripline.cluster_config import Placement
from gripline.credentials import VARIABLE, redacted
from gripline.errors import UserError
from gripline.kube.placement import fit_for
from gripline.kube.pools import Pool, fitting, misfit, pools, told
from gripline.kube.products import USES

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


def examine_cluster(own: Sequence[Placement]) -> Iterator[tuple[str, bool, str]]:
    """(GPU, whether a placement fits, what is known of it) of each pool of the cluster that the kubeconfig names.

    own: placements besides the shipped ones. Raises UserError.
    """
    from gripline.kube.api import ApiError, ForbiddenError, connect

    api = connect()
    try:
        nodes = api.nodes()
    except ForbiddenError as error:
        step = "ask for a ClusterRole that may list nodes; check with: kubectl auth can-i list nodes"
        raise UserError("kubernetes", "", f"no permission to list nodes: {error}", step) from None
    except ApiError as error:
        raise UserError("kubernetes", "", f"nodes cannot be listed: {error}", "check with: kubectl get nodes") from None
    found = pools(nodes)
    for pool in found:
        fits = fitting(pool) + [place.name for place in own if not misfit(pool, place)]
        others = [f"not {place.name}: {reason}" for place in own if (reason := misfit(pool, place))]
        yield pool.gpu.title if pool.gpu else "no GPU", bool(fits), "; ".join([*_described(pool, fits), *others])
    if not any(pool.gpu and "rtx" not in pool.unfit() for pool in found):
        yield "rendering rtx", False, f"no pool has GPUs for it now; placements for it: {', '.join(fit_for('rtx'))}"


def _described(pool: Pool, fits: Sequence[str]) -> Iterator[str]:
    counts = [f"{count} {resource}" for resource, count in pool.gpus.items()]
    if pool.gpu and not counts:
        counts = ["no GPU offered: is the device plugin running?"]
    yield ", ".join([f"{len(pool.nodes)} node{'s' * (len(pool.nodes) != 1)}", *counts])
    if pool.taints:
        yield f"taint{'s' * (len(pool.taints) != 1)} {', '.join(told(taint) for taint in sorted(pool.taints))}"
    yield f"fits {', '.join(fits)}" if fits else "fits no placement"
    if pool.gpu:
        unfit = pool.unfit()
        yield f"for {', '.join(fit)}" if (fit := [use for use in USES if use not in unfit]) else "for nothing here"
        yield from (f"not for {use}: {reason}" for use, reason in unfit.items())


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

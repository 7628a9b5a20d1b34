"""`gripline doctor --kube`: what a cluster says becomes a line for each pool; a failure is one line, exit code 2."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from catalogue import CATALOGUE, GFD, PRESENT, node

from pipelines.cli import main
from pipelines.doctor import examine_cluster

NODES = [CATALOGUE[name] for name in ("cpu", "l40s", "h200", "a100-mig", "gke-l4-shared")]


class FakeApi(ThreadingHTTPServer):
    """Answers GET /api/v1/nodes, and nothing else."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.body = 200, json.dumps({"kind": "NodeList", "items": NODES})

    def refuse(self, status: int, message: str) -> None:
        self.status, self.body = status, json.dumps({"kind": "Status", "message": message, "code": status})

    def shows(self, *nodes: dict[str, Any]) -> None:
        self.body = json.dumps({"kind": "NodeList", "items": nodes})


class _Handler(BaseHTTPRequestHandler):
    server: FakeApi

    def do_GET(self) -> None:
        found = self.path.split("?")[0] == "/api/v1/nodes"
        self.send_response(self.server.status if found else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(self.server.body.encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeApi]:
    with FakeApi() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        write_kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()
        thread.join()


def write_kubeconfig(folder: Path, server: str) -> None:
    named = {"cluster": "c", "user": "u"}
    config = {
        "current-context": "test",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "t0ken-3141"}}],
        "contexts": [{"name": "test", "context": named}],
    }
    (folder / "kubeconfig").write_text(json.dumps(config))


def doctor(folder: Path, *files: str) -> tuple[int, list[str], str]:
    """(exit code, lines, standard error) of a process of its own: the client reads KUBECONFIG when it is imported."""
    command = [sys.executable, "-m", "pipelines.cli", "doctor", "--kube", *files]
    environment = os.environ | {"KUBECONFIG": str(folder / "kubeconfig"), "NO_PROXY": "*"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=60)
    assert "t0ken" not in done.stdout + done.stderr
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_pools_and_the_placements_that_fit(api: FakeApi, tmp_path: Path) -> None:
    api.shows(*NODES, node("rt-l40s-1", {GFD: "NVIDIA-L40S"}, 4, PRESENT))
    code, lines, errors = doctor(tmp_path)
    assert (code, errors) == (0, "")
    by_gpu = {line[2:24].strip(): (line[0], line[25:]) for line in lines if len(line.split("  ")[0]) <= 24}
    taint = "taint nvidia.com/gpu=present:NoSchedule"
    assert by_gpu["NVIDIA-L40S"] == (
        "✓",
        f"2 nodes, 8 nvidia.com/gpu; {taint}; fits onprem-rt; for rtx, egl, policy",
    )
    assert by_gpu["NVIDIA-H200"] == (
        "✓",
        f"1 node, 8 nvidia.com/gpu; {taint}; fits onprem-train; for egl, policy; not for rtx: has no RT cores",
    )
    assert by_gpu["no GPU"] == ("✓", "1 node; fits cpu")
    (mig,) = [line for line in lines if "MIG-1g.10gb" in line]
    assert mig.startswith("✗") and "fits no placement; for policy; not for rtx: has no RT cores" in mig
    (shared,) = [line for line in lines if "nvidia-l4" in line]
    assert "fits gke-l4; for egl; not for rtx: is time-shared; not for policy: is time-shared" in shared
    assert len(lines) == 5


def test_own_placements_are_tried_too(api: FakeApi, tmp_path: Path) -> None:
    """Catches: a file of one's own that is silently taken for fitting."""
    (tmp_path / "mig.yaml").write_text(
        "name: my-mig\nnode_affinity:\n  - label: nvidia.com/gpu.product\n"
        "    values: [NVIDIA-A100-SXM4-80GB-MIG-1g.10gb]\ngpu_resource: nvidia.com/gpu\n"
    )
    api.shows(CATALOGUE["a100-mig"], CATALOGUE["h200"])
    code, lines, _ = doctor(tmp_path, "mig.yaml")
    assert code == 0
    assert "not my-mig: taint nvidia.com/gpu=present:NoSchedule is not tolerated" in lines[1]
    assert "not my-mig: label nvidia.com/gpu.product is NVIDIA-H200" in lines[0]
    assert lines[2].startswith("✗ rendering rtx") and "gke-l4" in lines[2]
    code, lines, errors = doctor(tmp_path, "none.yaml")
    assert (code, lines) == (2, []) and errors.startswith("gripline: none.yaml: cannot be read: No such file")


@pytest.fixture
def api_of_this_process(api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    from kubernetes.config import kube_config

    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    return api


def test_an_empty_cluster_and_a_missing_device_plugin(api_of_this_process: FakeApi) -> None:
    api = api_of_this_process
    api.shows()
    ((name, usable, _),) = examine_cluster([])
    assert (name, usable) == ("rendering rtx", False)
    api.shows(node("rt-0", {GFD: "NVIDIA-L40S"}))
    (name, usable, text), *_ = examine_cluster([])
    assert (name, usable) == ("NVIDIA-L40S", False) and "is the device plugin running?" in text


@pytest.mark.parametrize(
    ("status", "message", "told"),
    [
        (
            403,
            'nodes is forbidden: User "me" cannot list resource "nodes"',
            "kubernetes: no permission to list nodes: ",
        ),
        (401, "Unauthorized", "kubernetes: no permission to list nodes: Unauthorized"),
        (500, "etcdserver: request timed out", "kubernetes: nodes cannot be listed: etcdserver: request timed out"),
        (404, "page not found", "kubernetes: nodes cannot be listed: page not found"),
    ],
)
def test_refusals_of_the_api_are_one_line(
    api_of_this_process: FakeApi, capsys: pytest.CaptureFixture[str], status: int, message: str, told: str
) -> None:
    api_of_this_process.refuse(status, message)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--kube"])
    captured = capsys.readouterr()
    assert ended.value.code == 2 and captured.out == ""
    assert captured.err.startswith(f"gripline: {told}") and captured.err.count("\n") == 1


def test_no_cluster_is_one_line(tmp_path: Path) -> None:
    """Catches: a traceback, or a wait of minutes, for a cluster that is not there."""
    code, lines, errors = doctor(tmp_path)
    assert (code, lines) == (2, []) and errors.count("\n") == 1 and "set KUBECONFIG" in errors
    write_kubeconfig(tmp_path, "http://127.0.0.1:1")
    code, lines, errors = doctor(tmp_path)
    assert (code, lines) == (2, []) and errors.count("\n") == 1 and "Connection refused" in errors

"""What runs inside the pods of simulated nodes: Ray's dashboard and the driver of every head pod, and their kubelet.

kwok says of a simulated pod that it runs; nothing does. Here the entry point that a RayJob names runs as a process on
this machine, the real `gripline.kube.driver` with the container's environment, for as long as its pod exists: SIGTERM
when the pod goes, SIGKILL three seconds later. Its output is the log of the head's container `driver-log`, served as a
kubelet serves it, so that `pods/log` of the API server works. Ray's job API is served too, on the pods' addresses,
where a real operator asks for it.
"""

import ctypes
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cluster.kube import Json, Kube, Mirror

from gripline.kube.names import LOG_CONTAINER

ROOT = Path(__file__).parents[2]
GRACE_S = 3.0
DASHBOARD_PORT = 8265
TERMINAL = ("STOPPED", "SUCCEEDED", "FAILED")


class ContainerLog:
    """The lines of a container, each with its time."""

    def __init__(self) -> None:
        self._lines: list[tuple[float, bytes]] = []
        self._ended = False
        self._news = threading.Condition()

    def add(self, line: bytes) -> None:
        with self._news:
            self._lines.append((time.time(), line))
            self._news.notify_all()

    def end(self) -> None:
        with self._news:
            self._ended = True
            self._news.notify_all()

    def read(self, *, follow: bool, since: float = 0.0) -> Iterator[tuple[float, bytes]]:
        """Lines from `since` on."""
        position = 0
        while True:
            with self._news:
                while position == len(self._lines):
                    if self._ended or not follow:
                        return
                    self._news.wait()
                news = self._lines[position:]
            position += len(news)
            yield from (entry for entry in news if entry[0] >= since)


class Driver:
    """One submission of a job: a process, and what Ray's dashboard says of it."""

    def __init__(self, pod: Json, job_id: str, entrypoint: str, log: ContainerLog) -> None:
        self.job_id, self.namespace = job_id, pod["metadata"]["namespace"]
        self.start_ms, self.end_ms = int(time.time() * 1000), 0
        self._stopped = False
        self._log = log
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", f"exec {entrypoint}"],
            env=_environment(pod),
            cwd=tempfile.gettempdir(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def info(self) -> Json:
        """As `GET /api/jobs/{id}` of Ray's dashboard answers."""
        status, message = "RUNNING", "Job is currently running."
        if self.end_ms:
            code = self._process.returncode
            status = "STOPPED" if self._stopped else "FAILED" if code else "SUCCEEDED"
            message = f"Job entrypoint command failed with exit code {code}" if status == "FAILED" else f"Job {status}"
        times = {"start_time": self.start_ms} | ({"end_time": self.end_ms} if self.end_ms else {})
        return {"submission_id": self.job_id, "type": "SUBMISSION", "status": status, "message": message} | times

    def stop(self) -> bool:
        """As Ray stops a job: SIGTERM, then SIGKILL."""
        if not self.running:
            return False
        self._stopped = True
        self.end()
        return True

    def end(self, grace_s: float = GRACE_S) -> None:
        """SIGTERM now, SIGKILL after the grace period; does not wait."""
        self._signal(signal.SIGTERM)
        timer = threading.Timer(grace_s, self._signal, (signal.SIGKILL,))
        timer.daemon = True
        timer.start()

    def _signal(self, number: int) -> None:
        if self.running:
            os.killpg(self._process.pid, number)

    def _watch(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._log.add(line)
        self._process.wait()
        self.end_ms = int(time.time() * 1000)


def _environment(pod: Json) -> dict[str, str]:
    """The container's literal variables; Python finds the tests' stage functions."""
    own = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    of_container = {entry["name"]: entry["value"] for entry in pod["spec"]["containers"][0].get("env", [])
                    if "value" in entry and entry["name"] not in ("HOME", "TMPDIR", "PATH")}  # fmt: skip
    here = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}",
        "OMP_NUM_THREADS": "1",
    }
    return own | of_container | here


class Head:
    """What runs in one head pod."""

    def __init__(self) -> None:
        self.log = ContainerLog()
        self.drivers: dict[str, Driver] = {}


class HeadPods:
    """The insides of all head pods on simulated nodes, by pod UID."""

    def __init__(self, pods: Mirror) -> None:
        self._pods = pods
        self._heads: dict[str, Head] = {}
        self._ending: list[Driver] = []
        self._lock = threading.Lock()
        self._closed = False
        threading.Thread(target=self._follow, daemon=True, name="head pods").start()

    def of_address(self, address: str) -> Json | None:
        """The head pod with this IP."""
        return next((pod for pod in self._pods.all() if _is_head(pod) and pod["status"].get("podIP") == address), None)

    def named(self, namespace: str, name: str) -> Json | None:
        return self._pods.get(namespace, name)

    def head(self, pod: Json) -> Head:
        with self._lock:
            return self._heads.setdefault(pod["metadata"]["uid"], Head())

    def submit(self, pod: Json, job_id: str, entrypoint: str) -> None:
        head = self.head(pod)
        with self._lock:
            if job_id not in head.drivers and not self._closed:
                head.drivers[job_id] = Driver(pod, job_id, entrypoint, head.log)

    def info(self, pod: Json, job_id: str) -> Json | None:
        """None: this dashboard knows no such job."""
        driver = self.head(pod).drivers.get(job_id)
        return driver.info() if driver else None

    def stop(self, pod: Json, job_id: str) -> bool:
        driver = self.head(pod).drivers.get(job_id)
        return driver is not None and driver.stop()

    def running(self, namespace: str, job: str) -> list[str]:
        """Submission ids of the drivers that live, of RayJobs whose name begins so."""
        with self._lock:
            drivers = [driver for head in self._heads.values() for driver in head.drivers.values()] + self._ending
        mine = [driver for driver in drivers if driver.namespace == namespace and driver.job_id.startswith(job)]
        return [driver.job_id for driver in mine if driver.running]

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._end_all_but(set(), grace_s=0.0)

    def _follow(self) -> None:
        """End what runs in pods that are gone."""
        while not self._closed:
            self._pods.changed.wait(0.5)
            self._pods.changed.clear()
            self._end_all_but({pod["metadata"]["uid"] for pod in self._pods.all()})

    def _end_all_but(self, living: set[str], grace_s: float = GRACE_S) -> None:
        with self._lock:
            gone = [self._heads.pop(uid) for uid in set(self._heads) - living]
            self._ending = [driver for driver in self._ending if driver.running]
            self._ending += [driver for head in gone for driver in head.drivers.values()]
        for head in gone:
            for driver in head.drivers.values():
                driver.end(grace_s)
            head.log.end()


def _is_head(pod: Json) -> bool:
    return pod["metadata"].get("labels", {}).get("ray.io/node-type") == "head"


class Kubelet:
    """Serves `pods/log` of simulated nodes to the API server, and tells it where."""

    def __init__(self, kube: Kube, heads: HeadPods, folder: Path) -> None:
        self._kube, self._nodes = kube, _simulated_nodes(kube)
        address = _address_towards(kube.server)
        self._server = _server(_log_handler(heads), socket.create_server((address, 0)))
        self._server.socket = _certificate(folder).wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        _serve(self._server)
        status = {
            "addresses": [{"type": "InternalIP", "address": address}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._server.server_address[1]}},
        }
        for node in self._nodes:
            kube.patch(f"/api/v1/nodes/{node['metadata']['name']}/status", {"status": status})

    def close(self) -> None:
        for node in self._nodes:
            status = {"addresses": node["status"].get("addresses"), "daemonEndpoints": None}
            self._kube.patch(f"/api/v1/nodes/{node['metadata']['name']}/status", {"status": status})
        self._server.shutdown()


class Dashboard:
    """Serves Ray's job API on the addresses of all simulated pods, inside of the control plane's network namespace."""

    def __init__(self, heads: HeadPods, network_namespace: str, pod_network: str) -> None:
        enter = ["ip", "-n", network_namespace, "route"]
        subprocess.run([*enter, "replace", "local", pod_network, "dev", "lo"], check=True)
        self._server = _server(_job_handler(heads), _listen_in(network_namespace, DASHBOARD_PORT))
        _serve(self._server)

    def close(self) -> None:
        self._server.shutdown()


def _simulated_nodes(kube: Kube) -> list[Json]:
    nodes = kube.items("/api/v1/nodes")
    return [node for node in nodes if node["metadata"].get("annotations", {}).get("kwok.x-k8s.io/node") == "fake"]


def _address_towards(server: str) -> str:
    """This machine's address as the API server sees it."""
    where = urlsplit(server)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((where.hostname, where.port or 443))
        address: str = probe.getsockname()[0]
    return address


def _certificate(folder: Path) -> ssl.SSLContext:
    key, certificate = folder / "kubelet.key", folder / "kubelet.crt"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=simulated"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def _listen_in(network_namespace: str, port: int) -> socket.socket:
    """A socket keeps the network namespace of the thread that made it, so one thread goes there for a moment."""
    made: list[socket.socket] = []

    def make() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{network_namespace}") as handle:
            if libc.setns(handle.fileno(), 0x40000000):  # CLONE_NEWNET
                raise OSError(ctypes.get_errno(), "setns")
        made.append(socket.create_server(("0.0.0.0", port)))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


def _server(handler: type[BaseHTTPRequestHandler], listening: socket.socket) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(listening.getsockname()[:2], handler, bind_and_activate=False)
    server.socket.close()
    server.socket, server.server_address = listening, listening.getsockname()
    server.daemon_threads = True
    return server


def _serve(server: ThreadingHTTPServer) -> None:
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()


class _Quiet(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _log_handler(heads: HeadPods) -> type[BaseHTTPRequestHandler]:
    class Handler(_Quiet):
        def do_GET(self) -> None:
            """/containerLogs/{namespace}/{pod}/{container}"""
            url = urlsplit(self.path)
            words, query = url.path.strip("/").split("/"), {name: each[0] for name, each in parse_qs(url.query).items()}
            pod = heads.named(words[1], words[2]) if len(words) == 4 and words[3] == LOG_CONTAINER else None
            if pod is None:
                return self.answer(404, b"no such pod", "text/plain")
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            since = datetime.fromisoformat(query["sinceTime"]).timestamp() if "sinceTime" in query else 0.0
            if "sinceSeconds" in query:
                since = time.time() - int(query["sinceSeconds"])
            stamped = query.get("timestamps") == "true"
            try:
                for at, line in heads.head(pod).log.read(follow=query.get("follow") == "true", since=since):
                    stamp = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z ")
                    self.wfile.write((stamp.encode() if stamped else b"") + line)
                    self.wfile.flush()
            except OSError:  # the reader has gone
                self.close_connection = True

    return Handler


def _job_handler(heads: HeadPods) -> type[BaseHTTPRequestHandler]:
    class Handler(_Quiet):
        def do_GET(self) -> None:
            pod, words = self._asked()
            if words[:2] == ["api", "jobs"] and len(words) == 3 and pod:
                info = heads.info(pod, words[2])
                return self.answer(200, json.dumps(info).encode()) if info else self.answer(404, b"{}")
            self.answer(200 if pod else 404, b"success")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            pod, words = self._asked()
            if not pod:
                return self.answer(404, b"{}")
            if words[-1] == "stop":
                return self.answer(200, json.dumps({"stopped": heads.stop(pod, words[2])}).encode())
            asked = json.loads(body)
            heads.submit(pod, asked["submission_id"], asked["entrypoint"])
            self.answer(200, json.dumps({"submission_id": asked["submission_id"], "job_id": ""}).encode())

        def _asked(self) -> tuple[Json | None, list[str]]:
            return heads.of_address(self.connection.getsockname()[0]), urlsplit(self.path).path.strip("/").split("/")

    return Handler

"""As much of a Kubernetes API server as the client library needs: HTTP on this machine, objects in a dictionary."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

RAYJOBS = "/apis/ray.io/v1/namespaces/robots/rayjobs"
PODS = "/api/v1/namespaces/robots/pods"
EVENTS = "/api/v1/namespaces/robots/events"


class HttpApi:
    """Serves `objects` by path; `answers` overrides a (method, path) with a status and a body, or a function."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {}
        self.log_lines: list[str] = []
        self.slow_s = 0.0
        self.calls: list[tuple[float, str, str, dict[str, str], Any]] = []
        """(time, method, path, query, body), as they came in."""
        self.headers: list[dict[str, str]] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def _serve(self) -> None:
                split = urlsplit(self.path)
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                api.headers.append(dict(self.headers))
                api.calls.append((time.monotonic(), self.command, split.path, dict(parse_qsl(split.query)), body))
                time.sleep(api.slow_s)
                if split.path.endswith("/log"):
                    self._stream()
                    return
                status, answer = api.answer(self.command, split.path, body)
                content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _stream(self) -> None:
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for line in api.log_lines:
                    chunk = f"{line}\n".encode()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                    self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")

            do_GET = do_POST = do_PATCH = do_DELETE = _serve

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if (method, path) in self.answers:
            return self.answers[method, path]
        if method == "POST":
            stored = body | {
                "metadata": body["metadata"] | {"uid": "uid-1", "creationTimestamp": "2026-11-21T14:00:00Z"}
            }
            self.objects[f"{path}/{body['metadata']['name']}"] = stored
            return 201, stored
        if path in (RAYJOBS, PODS, EVENTS):
            return 200, {"items": [each for key, each in self.objects.items() if key.startswith(f"{path}/")]}
        if path not in self.objects:
            name = path.rpartition("/")[2]
            return 404, {"message": f'"{name}" not found', "details": {"name": name}}
        if method == "DELETE":
            return 200, self.objects.pop(path)
        return 200, self.objects[path]

    def times_of(self, method: str) -> list[float]:
        return [call[0] for call in self.calls if call[1] == method]

    def kubeconfig(self, path: Path) -> Path:
        config = {
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {"token": "a-token"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "robots"}}],
            "current-context": "test",
        }
        path.write_text(json.dumps(config))
        return path

    def __enter__(self) -> "HttpApi":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to it"
        time.sleep(0.01)


@contextmanager
def http_api() -> Iterator[HttpApi]:
    with HttpApi() as api:
        yield api

"""A Kubeflow Pipelines API that speaks just what a submission needs, on a real socket; it records what it is asked."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PREFIX = "/apis/v2beta1"


@dataclass(frozen=True)
class Request:
    """One recorded request."""

    method: str
    path: str
    query: dict[str, list[str]]
    authorization: str
    body: Any


@dataclass
class FakeKfp:
    """The server's state. `failures` maps 'POST /runs' and the like to (status, body) to answer with instead."""

    failures: dict[str, tuple[int, str]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    experiments: dict[str, dict[str, str]] = field(default_factory=dict)
    host: str = ""

    def sent(self, method: str, path: str) -> list[Request]:
        """The requests to one endpoint."""
        return [request for request in self.requests if (request.method, request.path) == (method, path)]

    def answer(self, request: Request) -> tuple[int, str]:
        """(status, body)."""
        failure = self.failures.get(f"{request.method} {request.path}")
        if failure is not None:
            return failure
        match request.method, request.path:
            case "GET", "/healthz":
                return 200, json.dumps({"multi_user": False})
            case "GET", "/experiments":
                predicates = json.loads(request.query["filter"][0])["predicates"]
                wanted = predicates[0]["stringValue"]
                found = [one for name, one in self.experiments.items() if name == wanted]
                return 200, json.dumps({"experiments": found, "total_size": len(found)})
            case "POST", "/experiments":
                name = request.body["display_name"]
                self.experiments[name] = {"experiment_id": f"e{len(self.experiments)}", "display_name": name}
                return 200, json.dumps(self.experiments[name])
            case "POST", "/runs":
                return 200, json.dumps({"run_id": "r0", "display_name": request.body["display_name"]})
            case "GET", "/runs/r0":
                return 200, json.dumps({"run_id": "r0", "created_at": "2026-11-21T00:00:00Z"})
        return 404, json.dumps({"error": "Not Found", "code": 5, "message": "Not Found"})


@contextmanager
def serve() -> Iterator[FakeKfp]:
    """Run the server on a free port of 127.0.0.1."""
    fake = FakeKfp()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._handle()

        def do_POST(self) -> None:
            self._handle()

        def _handle(self) -> None:
            url = urlsplit(self.path)
            size = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(size)) if size else None
            path = url.path.removeprefix(PREFIX)
            token = self.headers.get("authorization", "")
            fake.requests.append(Request(self.command, path, parse_qs(url.query), token, body))
            status, text = fake.answer(fake.requests[-1])
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.host = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

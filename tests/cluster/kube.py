"""The API server as the tests see it: paths and plain dicts, with the administrator's token.

Apart from `gripline.kube.api` on purpose: what is tested does not test itself.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
import yaml

Json = dict[str, Any]


class KubeError(Exception):
    """The API server said no."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(f"{status}: {message}")


def rayjobs(namespace: str, name: str = "") -> str:
    return f"/apis/ray.io/v1/namespaces/{namespace}/rayjobs/{name}".rstrip("/")


def rayclusters(namespace: str, name: str = "") -> str:
    return f"/apis/ray.io/v1/namespaces/{namespace}/rayclusters/{name}".rstrip("/")


def pods(namespace: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{namespace}/pods/{name}".rstrip("/")


class Kube:
    """Requests to one API server as one user. Safe for threads."""

    def __init__(self, server: str, token: str, ca_file: str) -> None:
        self.server, self.token, self.ca_file = server.rstrip("/"), token, ca_file
        self._pool = urllib3.PoolManager(
            ca_certs=ca_file,
            maxsize=64,
            headers={"Authorization": f"Bearer {token}"},
            timeout=urllib3.Timeout(connect=5, read=90),
            retries=False,
        )

    @classmethod
    def from_kubeconfig(cls, path: Path) -> "Kube":
        """The current context's cluster and user; only tokens are understood."""
        config = yaml.safe_load(path.read_text())
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"]
        return cls(cluster["server"], user["token"], cluster["certificate-authority"])

    def kubeconfig(self, path: Path, namespace: str, *, token: str, server: str = "") -> Path:
        """Write a kubeconfig for another user of this cluster, or for another way to it."""
        cluster = {"server": server or self.server, "certificate-authority": self.ca_file}
        context = {"cluster": "gripline", "user": "launcher", "namespace": namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "gripline",
            "clusters": [{"name": "gripline", "cluster": cluster}],
            "users": [{"name": "launcher", "user": {"token": token}}],
            "contexts": [{"name": "gripline", "context": context}],
        }
        path.write_text(yaml.safe_dump(config))
        path.chmod(0o600)
        return path

    def get(self, path: str) -> Json | None:
        """None where there is nothing."""
        try:
            return self._call("GET", path)
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    def items(self, path: str, selector: str = "") -> list[Json]:
        query = {"labelSelector": selector} if selector else {}
        found = self._call("GET", path, query=query)
        return [item | {"kind": found["kind"].removesuffix("List")} for item in found["items"]]

    def create(self, path: str, body: Json, *, dry_run: bool = False) -> Json:
        """A field that the server does not know is an error."""
        query = {"fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
        return self._call("POST", path, body, query=query)

    def replace(self, path: str, body: Json) -> Json:
        return self._call("PUT", path, body)

    def patch(self, path: str, change: Json) -> Json:
        return self._call("PATCH", path, change, content_type="application/merge-patch+json")

    def delete(self, path: str, *, grace_s: int | None = None) -> None:
        """Nothing happens where there is nothing."""
        body: Json = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        with suppress_status(404):
            self._call("DELETE", path, body | ({} if grace_s is None else {"gracePeriodSeconds": grace_s}))

    def text(self, path: str, **query: str) -> str:
        """What is no JSON, such as a log."""
        return self._request("GET", path, query=query).data.decode()

    def watch(self, path: str, resource_version: str) -> Iterator[tuple[str, Json]]:
        """(ADDED | MODIFIED | DELETED, object), until the server ends it."""
        query = {"watch": "1", "resourceVersion": resource_version, "timeoutSeconds": "300"}
        answer = self._pool.request("GET", f"{self.server}{path}?{urlencode(query)}", preload_content=False)
        if answer.status >= 300:
            raise KubeError(answer.status, answer.read().decode())
        try:
            for line in answer:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise KubeError(int(event["object"].get("code", 500)), event["object"].get("message", ""))
                yield event["type"], event["object"]
        finally:
            answer.close()

    def _call(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Json:
        answer: Json = self._request(method, path, body, query=query or {}, content_type=content_type).json()
        return answer

    def _request(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        query: dict[str, str],
        content_type: str = "application/json",
    ) -> urllib3.BaseHTTPResponse:
        for _ in range(60):
            answer = self._pool.request(
                method,
                f"{self.server}{path}" + (f"?{urlencode(query)}" if query else ""),
                body=None if body is None else json.dumps(body).encode(),
                headers={"Authorization": f"Bearer {self.token}", "Content-Type": content_type},
            )
            if answer.status != 429:  # a kind that is only just there has no storage yet
                break
            time.sleep(0.5)
        if answer.status >= 300:
            text = answer.data.decode(errors="replace")
            with suppress(ValueError, KeyError):
                text = json.loads(text)["message"]
            raise KubeError(answer.status, text)
        return answer


class suppress_status(suppress):  # noqa: N801  reads like contextlib.suppress
    """Ignore a KubeError of one status."""

    def __init__(self, status: int) -> None:
        super().__init__(KubeError)
        self._status = status

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        return isinstance(error, KubeError) and error.status == self._status


class Mirror:
    """A copy of all objects of one kind that follows the server: list, then watch, again when the watch ends."""

    def __init__(self, kube: Kube, path: str) -> None:
        self._kube, self._path = kube, path
        self._objects: dict[str, Json] = {}
        self._lock = threading.Lock()
        self.changed = threading.Event()
        self._stopped = False
        self._relist()
        threading.Thread(target=self._follow, daemon=True, name=f"mirror {path}").start()

    def all(self) -> list[Json]:
        with self._lock:
            return list(self._objects.values())

    def get(self, namespace: str, name: str) -> Json | None:
        with self._lock:
            return self._objects.get(f"{namespace}/{name}")

    def stop(self) -> None:
        self._stopped = True

    def _relist(self) -> None:
        found = self._kube.get(self._path) or {"items": [], "metadata": {"resourceVersion": "0"}}
        with self._lock:
            self._objects = {_key(item): item for item in found["items"]}
        self._version = found["metadata"]["resourceVersion"]
        self.changed.set()

    def _follow(self) -> None:
        while not self._stopped:
            try:
                for kind, item in self._kube.watch(self._path, self._version):
                    self._take(kind, item)
                    if self._stopped:
                        return
            except (KubeError, urllib3.exceptions.HTTPError, OSError):
                time.sleep(0.5)
            with suppress(KubeError, urllib3.exceptions.HTTPError, OSError):
                self._relist()

    def _take(self, kind: str, item: Json) -> None:
        with self._lock:
            self._version = item["metadata"]["resourceVersion"]
            if kind == "DELETED":
                self._objects.pop(_key(item), None)
            elif kind in ("ADDED", "MODIFIED"):
                self._objects[_key(item)] = item
        self.changed.set()


def _key(item: Json) -> str:
    return f"{item['metadata'].get('namespace', '')}/{item['metadata']['name']}"


def _named(entries: list[Json], name: str) -> Json:
    return next(entry for entry in entries if entry["name"] == name)

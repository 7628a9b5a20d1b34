"""What gripline asks of the Kubernetes API: a handful of calls, plain dictionaries out, five kinds of errors.

`Cluster` is the interface, `KubeApi` the real one; tests have one in memory.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

from gripline.errors import UserError

RAY = "/apis/ray.io/v1"
TIMEOUT_S = 10.0
SILENT_LOG_S = 20.0
"""A log stream without a line for so long is opened anew: its connection may be dead."""
CONNECTIONS = 4
"""Kept open: the log stream takes one, calls of other threads the rest. With fewer, urllib3 warns in the step's log."""
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
GRANTED_BY = "kubectl apply -k manifests/overlays/… grants it (manifests/base)"
ACCEPTED = {"Accept": "application/json, */*", "Content-Type": "application/json"}
Object = dict[str, Any]


class ApiError(Exception):
    """The API server refused a call or did not answer; the text is its message, in one line."""


class NotFoundError(ApiError):
    """404."""


class ConflictError(ApiError):
    """409: the object exists already, or is not the one that was meant."""


class RefusedError(ApiError):
    """400, 422 and the like: the call itself is wrong."""


class NoSuchKindError(RefusedError):
    """404 for a kind of objects, not for one of them: what defines it is not installed."""


class UnavailableError(ApiError):
    """5xx, 429, or no connection: it may work in a moment."""


class ForbiddenError(ApiError):
    """401 or 403."""

    def __init__(self, message: str, verb: str, resource: str, namespace: str) -> None:
        super().__init__(message)
        self.verb, self.resource, self.namespace = verb, resource, namespace

    def for_user(self) -> UserError:
        """One line that names the missing right and what grants it."""
        where = f"namespace {self.namespace}" if self.namespace else "cluster"
        return UserError(where, "", f"no permission to {self.verb} {self.resource} ({self})", GRANTED_BY)


class Cluster(Protocol):
    """Calls on one namespace. Every method raises ApiError."""

    namespace: str

    def within(self, namespace: str) -> "Cluster": ...
    def rayjob(self, name: str) -> Object: ...
    def rayjobs(self, label_selector: str) -> list[Object]: ...
    def create_rayjob(self, manifest: Object) -> Object: ...
    def patch_rayjob(self, name: str, patch: Object) -> Object: ...
    def delete_rayjob(self, name: str, uid: str = "") -> None: ...
    def rayclusters(self, label_selector: str) -> list[Object]: ...
    def delete_raycluster(self, name: str, uid: str = "") -> None: ...
    def workflow(self, name: str) -> Object: ...
    def pod(self, name: str) -> Object: ...
    def pods(self, label_selector: str) -> list[Object]: ...
    def warnings(self) -> list[Object]: ...
    def follow_log(self, pod: str, container: str, since: str) -> Iterator[str]: ...


@dataclass(frozen=True)
class Connection:
    """Where an API server is and what it knows us by."""

    host: str
    new_pool: Callable[[], Any]
    """Makes an urllib3.PoolManager with the server's certificate authority and, where one is used, our certificate."""
    headers: Callable[[], dict[str, str]]
    """Asked at every call: tokens are replaced while a process runs."""


class KubeApi:
    """The real `Cluster`. May be used by several threads, though not again by a signal handler: give that its own."""

    def __init__(self, connection: Connection, namespace: str, timeout_s: float = TIMEOUT_S, pool: Any = None) -> None:
        self.namespace = namespace
        self._connection, self._timeout_s = connection, timeout_s
        self._pool = connection.new_pool() if pool is None else pool

    def within(self, namespace: str) -> "KubeApi":
        """The same connection for another namespace."""
        return KubeApi(self._connection, namespace, self._timeout_s, self._pool)

    def separate(self, timeout_s: float) -> "KubeApi":
        """Another connection for the same namespace, which shares no lock with this one."""
        return KubeApi(self._connection, self.namespace, timeout_s)

    def rayjob(self, name: str) -> Object:
        return self._get("rayjobs", f"{RAY}/namespaces/{self.namespace}/rayjobs/{name}")

    def rayjobs(self, label_selector: str) -> list[Object]:
        path = f"{RAY}/namespaces/{self.namespace}/rayjobs"
        return self._list("rayjobs", path, {"labelSelector": label_selector})

    def create_rayjob(self, manifest: Object) -> Object:
        path = f"{RAY}/namespaces/{self.namespace}/rayjobs"
        created: Object = self._call("create", "rayjobs", "POST", path, body=manifest)
        return created

    def patch_rayjob(self, name: str, patch: Object) -> Object:
        """A JSON merge patch."""
        path = f"{RAY}/namespaces/{self.namespace}/rayjobs/{name}"
        headers = {"Content-Type": "application/merge-patch+json"}
        patched: Object = self._call("patch", "rayjobs", "PATCH", path, body=patch, headers=headers)
        return patched

    def delete_rayjob(self, name: str, uid: str = "") -> None:
        """Returns when the API server has taken it, not when the object is gone. ConflictError: it has another uid."""
        self._delete("rayjobs", f"{RAY}/namespaces/{self.namespace}/rayjobs/{name}", uid)

    def rayclusters(self, label_selector: str) -> list[Object]:
        path = f"{RAY}/namespaces/{self.namespace}/rayclusters"
        return self._list("rayclusters", path, {"labelSelector": label_selector})

    def delete_raycluster(self, name: str, uid: str = "") -> None:
        """As `delete_rayjob`."""
        self._delete("rayclusters", f"{RAY}/namespaces/{self.namespace}/rayclusters/{name}", uid)

    def workflow(self, name: str) -> Object:
        """Of Argo: a run of a pipeline."""
        return self._get("workflows", f"/apis/argoproj.io/v1alpha1/namespaces/{self.namespace}/workflows/{name}")

    def pod(self, name: str) -> Object:
        return self._get("pods", f"/api/v1/namespaces/{self.namespace}/pods/{name}")

    def pods(self, label_selector: str) -> list[Object]:
        return self._list("pods", f"/api/v1/namespaces/{self.namespace}/pods", {"labelSelector": label_selector})

    def nodes(self) -> list[Object]:
        return self._list("nodes", "/api/v1/nodes", {})

    def read(self, resource: str, path: str, query: Mapping[str, str] | None = None) -> Object:
        """Any object or list; of a Secret, only its metadata travels."""
        partial = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
        headers = {"Accept": partial} if resource == "secrets" else {}
        found: Object = self._call("get", resource, "GET", path, query=query, headers=headers)
        return found

    def review(self, path: str, body: Object) -> Object:
        """What somebody may do: a SubjectAccessReview, or one of ourselves, with its answer."""
        answer: Object = self._call("create", path.rpartition("/")[2], "POST", path, body=body)
        return answer

    def warnings(self) -> list[Object]:
        """Events of type Warning."""
        return self._list("events", f"/api/v1/namespaces/{self.namespace}/events", {"fieldSelector": "type=Warning"})

    def follow_log(self, pod: str, container: str, since: str) -> Iterator[str]:
        """Lines as they are written, each with its timestamp before it, until the container ends.

        since: RFC 3339, in whole seconds; empty: from the beginning. A silent stream ends with UnavailableError.
        """
        query = {"container": container, "follow": "true", "timestamps": "true"}
        query |= {"sinceTime": since} if since else {}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log"
        with _lost_connections():
            response = self._request("GET", path, query=query, read_timeout_s=SILENT_LOG_S)
            try:
                if response.status != 200:
                    raise self._error(response.status, response.data, "get", "pods/log")
                for line in response:
                    yield line.decode(errors="replace").rstrip("\n")
            finally:
                response.close()

    def _get(self, resource: str, path: str) -> Object:
        found: Object = self._call("get", resource, "GET", path)
        return found

    def _list(self, resource: str, path: str, query: Mapping[str, str]) -> list[Object]:
        items: list[Object] = self._call("list", resource, "GET", path, query=query)["items"]
        return items

    def _delete(self, resource: str, path: str, uid: str) -> None:
        body: Object = {"propagationPolicy": "Background"}
        body |= {"preconditions": {"uid": uid}} if uid else {}
        self._call("delete", resource, "DELETE", path, body=body)

    def _call(
        self,
        verb: str,
        resource: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        with _lost_connections():
            response = self._request(method, path, query=query, body=body, headers=headers)
            content = response.data
        if not 200 <= response.status <= 299:
            raise self._error(response.status, content, verb, resource)
        return json.loads(content)

    def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        headers: Mapping[str, str] | None = None,
        read_timeout_s: float = 0.0,
    ) -> Any:
        import urllib3

        return self._pool.request(
            method,
            self._connection.host + path + (f"?{urlencode(query)}" if query else ""),
            headers=ACCEPTED | self._connection.headers() | dict(headers or {}),
            body=None if body is None else json.dumps(body).encode(),
            timeout=urllib3.Timeout(connect=self._timeout_s, read=read_timeout_s or self._timeout_s),
            preload_content=not read_timeout_s,
            retries=False,  # we retry ourselves, within budgets
        )

    def _error(self, status: int, content: bytes, verb: str, resource: str) -> ApiError:
        message, names_an_object = _said(content)
        if status in (401, 403):
            return ForbiddenError(message or f"status {status}", verb, resource, self.namespace)
        if status == 404:
            return NotFoundError(message) if names_an_object else NoSuchKindError(message)
        if status == 409:
            return ConflictError(message)
        if status in (408, 429) or status >= 500:
            return UnavailableError(message or f"status {status}")
        return RefusedError(message or f"status {status}")


@contextmanager
def _lost_connections() -> Iterator[None]:
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (HTTPError, OSError) as error:
        raise UnavailableError(" ".join(str(error).split())[:200] or type(error).__name__) from None


def _said(content: bytes) -> tuple[str, bool]:
    """(the human part of a `Status` object, whether it is about one object by its name)."""
    text = content.decode(errors="replace")
    try:
        parsed = json.loads(text)
        text, named = str(parsed["message"]), bool(parsed.get("details", {}).get("name"))
    except (ValueError, KeyError, TypeError, AttributeError):
        named = False
    return " ".join(text.split())[:400], named


def connect(namespace: str = "", timeout_s: float = TIMEOUT_S) -> KubeApi:
    """The cluster of the kubeconfig, else the one that this pod runs in. namespace: empty means that of either.

    Raises UserError where there is none. Does not contact it.
    """
    if "KUBECONFIG" in os.environ or not in_a_pod():
        connection, named = _of_kubeconfig(os.environ.get("KUBECONFIG"))
    else:
        connection, named = _of_this_pod(), own_namespace()
    return KubeApi(connection, namespace or named, timeout_s)


def _of_kubeconfig(path: str | None) -> tuple[Connection, str]:
    """(connection, the context's namespace). path: None means the usual one.

    The client library knows all ways to log in to a cluster; only the requests are ours: its own differ from one
    release to the next, and it takes no time limit but in whole seconds.
    """
    from kubernetes import client, config

    settings = client.Configuration()
    try:
        config.load_kube_config(path, client_configuration=settings)
        _, active = config.list_kube_config_contexts(path)
    except (config.ConfigException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError("kubernetes", "", f"no cluster is known: {reason}", "set KUBECONFIG") from None
    connection = Connection(
        host=settings.host,
        new_pool=lambda: client.ApiClient(settings).rest_client.pool_manager,
        headers=lambda: {each["key"]: each["value"] for each in settings.auth_settings().values()},
    )
    return connection, active["context"].get("namespace", "default")


def _of_this_pod() -> Connection:
    """By the service account. Without the client library, which would be most of a launcher's memory."""
    import urllib3

    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    return Connection(
        host=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        new_pool=lambda: urllib3.PoolManager(maxsize=CONNECTIONS, ca_certs=str(SERVICE_ACCOUNT / "ca.crt")),
        headers=lambda: {"authorization": f"Bearer {(SERVICE_ACCOUNT / 'token').read_text().strip()}"},
    )


def in_a_pod() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").exists()


def own_namespace() -> str:
    """Of the pod that this process runs in; empty outside of one."""
    path = SERVICE_ACCOUNT / "namespace"
    return path.read_text(encoding="utf-8").strip() if in_a_pod() else ""

"""The real client against an HTTP server: what is sent, and what every answer becomes."""

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import urllib3
from http_api import PODS, RAYJOBS, HttpApi, http_api

from gripline.kube import api
from gripline.kube.api import (
    ApiError,
    ConflictError,
    Connection,
    ForbiddenError,
    KubeApi,
    NoSuchKindError,
    NotFoundError,
    RefusedError,
    UnavailableError,
    connect,
)


@pytest.fixture
def server() -> Iterator[HttpApi]:
    with http_api() as server:
        yield server


def make_client(url: str) -> KubeApi:
    return KubeApi(Connection(url, urllib3.PoolManager, dict), "robots", timeout_s=0.5)


@pytest.fixture
def client(server: HttpApi) -> KubeApi:
    return make_client(server.url)


def test_objects_come_and_go(server: HttpApi, client: KubeApi) -> None:
    manifest = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a"}, "spec": {"n": 1}}
    assert client.create_rayjob(manifest)["metadata"]["uid"] == "uid-1"
    assert client.rayjob("a")["spec"] == {"n": 1}
    assert [each["metadata"]["name"] for each in client.rayjobs("x=y")] == ["a"]
    client.patch_rayjob("a", {"metadata": {"annotations": {"k": "v"}}})
    assert server.headers[-1]["Content-Type"] == "application/merge-patch+json"
    client.delete_rayjob("a", "uid-1")
    assert server.calls[-1][4] == {"propagationPolicy": "Background", "preconditions": {"uid": "uid-1"}}
    with pytest.raises(NotFoundError, match='"a" not found'):
        client.rayjob("a")
    assert client.within("other").namespace == "other"


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, {"message": "Unauthorized"}, ForbiddenError),
        (403, {"message": "denied"}, ForbiddenError),
        (404, {"message": "not found", "details": {"name": "a"}}, NotFoundError),
        (404, {"message": "the server could not find the requested resource", "details": {}}, NoSuchKindError),
        (404, "404 page not found", NoSuchKindError),
        (409, {"message": "already exists"}, ConflictError),
        (400, {"message": "bad"}, RefusedError),
        (422, {"message": "spec.x: Invalid value"}, RefusedError),
        (429, {"message": "slow down"}, UnavailableError),
        (500, {"message": "failed calling webhook"}, UnavailableError),
        (503, "", UnavailableError),
    ],
)
def test_every_refusal(server: HttpApi, client: KubeApi, status: int, body: object, kind: type[ApiError]) -> None:
    server.answers["GET", f"{RAYJOBS}/a"] = status, body
    with pytest.raises(kind) as raised:
        client.rayjob("a")
    assert type(raised.value) is kind
    assert not isinstance(body, dict) or body["message"] in str(raised.value)


def test_missing_right_is_one_line_with_what_grants_it(server: HttpApi, client: KubeApi) -> None:
    server.answers["GET", f"{PODS}/a"] = 403, {"message": 'User "x" cannot get resource "pods"'}
    with pytest.raises(ForbiddenError) as raised:
        client.pod("a")
    line = raised.value.for_user().line
    assert line.startswith("namespace robots: no permission to get pods (User") and "kubectl apply -k" in line


def test_silence_is_an_error_in_time(server: HttpApi, client: KubeApi) -> None:
    """Catches: a time limit that the client library ignores, which waits for ever."""
    server.slow_s = 5.0
    started = time.monotonic()
    with pytest.raises(UnavailableError):
        client.rayjob("a")
    assert time.monotonic() - started < 2.0


def test_nobody_listens() -> None:
    with http_api() as server:
        url = server.url
    with pytest.raises(UnavailableError):
        make_client(url).rayjob("a")


def test_log_lines(server: HttpApi, client: KubeApi) -> None:
    server.log_lines = ["2026-11-21T10:00:00Z one", "2026-11-21T10:00:01Z zwei ü", "", "x" * 200_000]
    lines = list(client.follow_log("head", "driver-log", "2026-11-21T10:00:00Z"))
    assert lines == server.log_lines
    assert server.calls[-1][2:4] == (
        f"{PODS}/head/log",
        {"container": "driver-log", "follow": "true", "timestamps": "true", "sinceTime": "2026-11-21T10:00:00Z"},
    )


def test_connect_reads_the_kubeconfig(server: HttpApi, tmp_path: Path) -> None:
    """In a process of its own: the library reads KUBECONFIG when it is imported."""
    code = "from gripline.kube.api import connect; api = connect(); print(api.namespace, api.rayjobs('a=b'))"
    config = server.kubeconfig(tmp_path / "config")
    done = subprocess.run(
        [sys.executable, "-c", code], env={"KUBECONFIG": str(config)}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "robots []\n", done.stderr
    assert server.headers[-1]["authorization"] == "Bearer a-token"


def test_no_cluster_is_one_line(tmp_path: Path) -> None:
    code = """
from gripline.errors import UserError
from gripline.kube.api import connect
try:
    connect()
except UserError as error:
    print(error.line)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={"HOME": str(tmp_path)}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("kubernetes: no cluster is known") and done.stdout.count("\n") == 1, done.stderr


def test_in_a_pod_the_service_account_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a token that expired, because it is read once."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(api, "SERVICE_ACCOUNT", tmp_path)
    (tmp_path / "namespace").write_text("robots\n")
    (tmp_path / "token").write_text("first")
    found = connect()
    assert (found.namespace, found._connection.host) == ("robots", "https://[fd00::1]:443")
    assert found._connection.headers() == {"authorization": "Bearer first"}
    (tmp_path / "token").write_text("second\n")
    assert found._connection.headers() == {"authorization": "Bearer second"}
    assert connect("others").namespace == "others"


def test_threads_that_call_at_once_leave_no_warnings_in_the_steps_log(
    server: HttpApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches urllib3's 'Connection pool is full': Kubeflow's executor shows warnings of all libraries."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "unused")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(api, "SERVICE_ACCOUNT", tmp_path)
    client = KubeApi(Connection(server.url, api._of_this_pod().new_pool, dict), "robots")
    server.slow_s = 0.2
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(client.rayjobs, ["a=b"] * 3))
    assert caplog.text == ""

"""What is checked before anything is spent: the images, the store and MLflow by name, and the cluster itself.

What only the pods can know (their network, their credentials) is never called wrong from another machine.
"""

import queue
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import TypeVar

from gripline import credentials
from gripline.cluster_config import ClusterConfig, StageName
from gripline.errors import UserError
from gripline.kube.api import connect
from gripline.kube.cluster_checks import on_cluster
from gripline.kube.findings import OK, UNKNOWN, WRONG, Finding
from gripline.kube.placement import pods_of
from gripline.kube.rayjob import Job, render, with_images
from gripline.object_store import ObjectStore
from gripline.store import is_local

TIMEOUT_S = 20.0
AGAIN = "the step `plan` finds out in its pod"
SINGLE_USER_NAMESPACE = "kubeflow"
"""In which pipelines run where users have no namespaces of their own."""
JOBS: dict[StageName, str] = {"sft": "sft", "rl": "rl", "evaluate": "eval-rl"}
"""Stage -> a job that it runs as."""
T = TypeVar("T")


def everything(
    config: ClusterConfig,
    *,
    store_uri: str,
    tracking_uri: str,
    image: str,
    namespace: str = "",
    account: str = "",
    with_cluster: bool = True,
) -> Iterator[Finding]:
    """All checks: `by_name`, and `on_cluster` where a cluster is known and wanted.

    namespace: of the RayJobs, if the profile names none; empty: the kubeconfig's, or that of the pod that this runs in.
    """
    yield from by_name(config, store_uri=store_uri, tracking_uri=tracking_uri, image=image)
    if not with_cluster:
        return
    try:
        api = connect(config.namespace or namespace)
    except (UserError, ModuleNotFoundError) as error:
        yield Finding("cluster", UNKNOWN, f"not checked: {_short(error)}")
        return
    yield from on_cluster(config, api, account=account)


def account_of_steps(namespace: str) -> str:
    """`namespace/name` of the ServiceAccount of pipeline steps, as Kubeflow sets it up; empty: single-user mode."""
    return f"{namespace}/default-editor" if namespace else f"{SINGLE_USER_NAMESPACE}/pipeline-runner"


def by_name(config: ClusterConfig, *, store_uri: str, tracking_uri: str, image: str) -> Iterator[Finding]:
    """What can be checked without a cluster.

    image: of the pods that name none, empty if unknown. tracking_uri: empty means what the steps' environment says.
    """
    yield _images(config, image)
    yield from _rayjobs(with_images(config, image), store_uri)
    yield _store(store_uri)
    yield _mlflow(tracking_uri)


def _images(config: ClusterConfig, image: str) -> Finding:
    named = {group: pod.image or image for group, pod in pods_of(config).items()}
    missing = [group for group, name in named.items() if not name]
    if missing:
        mend = "give --image, or set the image of each group in the profile's cluster section"
        return Finding("images", WRONG, f"none named for {', '.join(missing)}", mend)
    untagged = sorted({name for name in named.values() if not _is_pinned(name)})
    if untagged:
        mend = "name a version: pods of one run must not differ"
        return Finding("images", WRONG, f"{', '.join(untagged)} may be another image tomorrow", mend)
    shown = ", ".join(f"{group} {name}" for group, name in named.items())
    if all(_has_registry(name) for name in named.values()):
        return Finding("images", OK, shown)
    mend = "push it, and give its whole name"
    if config.pull_policy == "Always":
        return Finding("images", WRONG, f"no registry to pull from: {shown}", mend)
    return Finding("images", UNKNOWN, f"every node must hold what names no registry: {shown}", f"or {mend}")


def _is_pinned(image: str) -> bool:
    tag = image.rpartition("/")[2].partition(":")[2]
    return "@sha256:" in image or tag not in ("", "latest")


def _rayjobs(config: ClusterConfig, store_uri: str) -> Iterator[Finding]:
    """Render what the stages would run as, which refuses what Kubernetes, KubeRay, Kueue or a GPU would."""
    for stage in config.stages:
        try:
            render(Job("run", f"{store_uri.rstrip('/')}/run", JOBS[stage], config))
        except UserError as error:
            where = ": ".join(part for part in (error.where, error.field) if part)
            yield Finding("rayjob", WRONG, f"{where}: {error.problem}", error.next_step)
            return
    if config.stages:
        yield Finding("rayjob", OK, f"{', '.join(config.stages)} can be rendered")


def _has_registry(image: str) -> bool:
    return "/" in image and not image.startswith("localhost/")


def _store(uri: str) -> Finding:
    """Write an object and delete it again."""
    if is_local(uri):
        mend = "name a bucket that all pods reach, such as s3://bucket/runs"
        return Finding("store", WRONG, f"{uri} is a folder, which the pods of a cluster do not share", mend)
    try:
        _within(TIMEOUT_S, lambda: _write_and_delete(uri))
    except TimeoutError as error:
        return Finding("store", UNKNOWN, f"{uri} gives {error}", AGAIN)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError | ValueError):  # no such bucket, or scheme: so for the pods
            return Finding("store", WRONG, f"{uri} {error.problem}", error.next_step)
        return Finding("store", UNKNOWN, f"{uri} from here: {error.problem}", AGAIN)
    return Finding("store", OK, f"{uri} can be written")


def _write_and_delete(uri: str) -> None:
    store, name = ObjectStore(uri, patience_s=0), f".gripline-probe-{uuid.uuid4().hex}"
    store.write(name, b"probe")
    store.delete([name])


def _mlflow(uri: str) -> Finding:
    import urllib.error
    import urllib.request

    shown = credentials.redacted(uri)
    if not uri:
        return Finding("mlflow", UNKNOWN, f"not checked: the pods take it from their {credentials.VARIABLE}")
    if not uri.startswith(("http://", "https://")):
        return Finding("mlflow", WRONG, f"{shown} is no server, and pods share no file", "give --tracking http://…")
    try:
        urllib.request.urlopen(f"{shown.rstrip('/')}/health", timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):
            mend = "is it MLflow's address, and the server healthy?"
            return Finding("mlflow", WRONG, f"{shown}/health answers {error.code}", mend)
    except OSError as error:
        return Finding("mlflow", UNKNOWN, f"{shown} cannot be reached from here: {_short(error)}", AGAIN)
    return Finding("mlflow", OK, f"{shown} answers")


def _within(timeout_s: float, question: Callable[[], T]) -> T:
    """The answer, or the error; TimeoutError if there is neither in time. Drivers retry for minutes."""
    answers: queue.Queue[T | BaseException] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(question())
        except BaseException as error:  # noqa: BLE001  raised again by whoever asked
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError(f"no answer within {timeout_s:.0f} s") from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _short(error: BaseException) -> str:
    return credentials.redacted(" ".join(str(error).split())[:200]) or type(error).__name__

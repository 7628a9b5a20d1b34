"""A stand-in for KubeRay's operator: RayJobs in HTTPMode become Ray clusters, pods and a status, as in KubeRay 1.7.0.

The states, their order and what each does follow `rayjob_controller.go` and `raycluster_controller.go` of that release
(https://github.com/ray-project/kuberay), written anew in a tenth of the size: no services, no autoscaler, and a pass
every quarter of a second where the original waits three seconds. What runs in the pods: `pods_standin`.
"""

import random
import string
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import urllib3
from cluster import kube as paths
from cluster.kube import Json, Kube, KubeError, Mirror, suppress_status
from cluster.pods_standin import TERMINAL, HeadPods

FINALIZER = "ray.io/rayjob-finalizer"
ENDS_JOB = ("DeadlineExceeded", "JobStatusCheckTimeoutExceeded")
"""Reasons that are not retried."""
STATUS_CHECK_TIMEOUT_S = 300
PASS_EVERY_S = 0.25


class Operator:
    """Reconciles every RayJob of the cluster until closed. While paused it does nothing, like one that is not there."""

    def __init__(self, kube: Kube, heads: HeadPods, pods: Mirror) -> None:
        self._kube, self._heads, self._pods = kube, heads, pods
        self._jobs = Mirror(kube, "/apis/ray.io/v1/rayjobs")
        self._clusters = Mirror(kube, "/apis/ray.io/v1/rayclusters")
        self._running, self._closed = threading.Event(), False
        self._running.set()
        self._idle = threading.Event()
        self.problems: list[str] = []
        """What went wrong in here, which no test should see."""
        self._thread = threading.Thread(target=self._work, daemon=True, name="operator")
        self._thread.start()

    def pause(self) -> None:
        self._running.clear()
        self._idle.wait(10)

    def resume(self) -> None:
        self._running.set()

    def close(self) -> None:
        self._closed = True
        self._running.set()
        self._thread.join(10)
        self._jobs.stop()
        self._clusters.stop()

    def _work(self) -> None:
        while not self._closed:
            self._idle.set()
            time.sleep(PASS_EVERY_S)
            self._running.wait()
            self._idle.clear()
            for job in self._jobs.all():
                with self._tolerant(job):
                    self._reconcile_job(job)
            for cluster in self._clusters.all():
                with self._tolerant(cluster):
                    self._reconcile_cluster(cluster)

    @contextmanager
    def _tolerant(self, item: Json) -> Iterator[None]:
        """A conflict means that the copy was old: the next pass sees the new one. So does the end of a namespace."""
        try:
            yield
        except KubeError as error:
            if error.status not in (404, 409) and "being terminated" not in str(error):
                self.problems.append(f"{item['metadata']['name']}: {error}")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self.problems.append(f"{item['metadata']['name']}: {error}")

    # --- RayJob ------------------------------------------------------------------------------------------------------

    def _reconcile_job(self, job: Json) -> None:
        meta, old = job["metadata"], job.get("status", {})
        if "deletionTimestamp" in meta:
            self._release(job)
            return
        if problem := validation_problem(job["spec"]):
            if old.get("jobDeploymentStatus") != "ValidationFailed":
                failed = {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": problem}
                self._write_status(job, old | failed)
            return
        state = old.get("jobDeploymentStatus", "")
        steps: dict[str, Callable[[Json, Json], Json | None]] = {
            "": self._begin,
            "Initializing": self._initialize,
            "Running": self._run,
            "Suspending": self._clear,
            "Retrying": self._clear,
            "Suspended": self._suspended,
            "Complete": self._finish,
            "Failed": self._finish,
        }
        if state not in steps:
            return
        new = steps[state](job, deepcopy(old))
        if new is not None:
            self._write_status(job, after_failure(job["spec"], old, new))

    def _release(self, job: Json) -> None:
        """Stop the job and let the object go; its cluster and pods follow by their owner references."""
        meta, status = job["metadata"], job.get("status", {})
        if FINALIZER not in meta.get("finalizers", []):
            return
        head = self._head(meta["namespace"], status.get("rayClusterName", ""))
        if head and status.get("jobStatus") not in TERMINAL:
            self._heads.stop(head, status.get("jobId", ""))
        rest = [name for name in meta["finalizers"] if name != FINALIZER]
        self._kube.replace(_path(job), job | {"metadata": meta | {"finalizers": rest}})

    def _begin(self, job: Json, status: Json) -> Json | None:
        meta = job["metadata"]
        if FINALIZER not in meta.get("finalizers", []):
            self._kube.replace(_path(job), job | {"metadata": meta | {"finalizers": [FINALIZER]}})
            return None
        status |= {"jobId": status.get("jobId") or _generated(meta["name"])}
        status |= {"rayClusterName": status.get("rayClusterName") or _generated(meta["name"])}
        return status | {"jobStatus": "", "jobDeploymentStatus": "Initializing", "startTime": _now()}

    def _initialize(self, job: Json, status: Json) -> Json | None:
        if ended := self._suspend_or_deadline(job, status, ("activeDeadlineSeconds", "preRunningDeadlineSeconds")):
            return ended
        cluster = self._cluster(job, status)
        if cluster is None:
            return None
        seen = cluster.get("status", {})
        status["rayClusterStatus"] = seen
        if seen.get("state") == "ready":
            status["dashboardURL"] = f"{cluster['metadata']['name']}-head-svc.{job['metadata']['namespace']}.svc:8265"
            status["jobDeploymentStatus"] = "Running"
        return status

    def _run(self, job: Json, status: Json) -> Json | None:
        if ended := self._suspend_or_deadline(job, status, ("activeDeadlineSeconds",)):
            return ended
        cluster = self._cluster(job, status)
        head = self._head(job["metadata"]["namespace"], status["rayClusterName"])
        if cluster is None or head is None or not _is_ready(head):
            since = status.setdefault("jobStatusCheckFailureStartTime", _now())
            if _age_s(since) > STATUS_CHECK_TIMEOUT_S:
                return _failed(status, "JobStatusCheckTimeoutExceeded", f"Job status checks have failed since {since}")
            return status
        status.pop("jobStatusCheckFailureStartTime", None)
        info = self._heads.info(head, status["jobId"])
        if info is None:
            self._heads.submit(head, status["jobId"], job["spec"]["entrypoint"])
            return status
        status |= {"rayClusterStatus": cluster.get("status", {}), "jobStatus": info["status"]}
        status["message"] = info["message"]
        if info["status"] == "FAILED":
            return _failed(status, "AppFailed", info["message"])
        if info["status"] in TERMINAL:
            return status | {"jobDeploymentStatus": "Complete", "endTime": _now()}
        return status

    def _clear(self, job: Json, status: Json) -> Json | None:
        """Suspending or Retrying: on once the cluster is gone."""
        if not self._cluster_is_gone(job, status):
            return None
        after = {"Suspending": "Suspended", "Retrying": ""}[status["jobDeploymentStatus"]]
        kept = {name: status[name] for name in ("failed", "succeeded") if name in status}
        return kept | {"jobStatus": "", "jobDeploymentStatus": after, "startTime": status["startTime"]}

    def _suspended(self, job: Json, status: Json) -> Json | None:
        return None if job["spec"].get("suspend") else status | {"jobDeploymentStatus": "", "jobStatus": ""}

    def _finish(self, job: Json, status: Json) -> None:
        ttl_s = job["spec"].get("ttlSecondsAfterFinished", 0)
        if job["spec"].get("shutdownAfterJobFinishes") and _age_s(status["endTime"]) >= ttl_s:
            self._cluster_is_gone(job, status)

    def _suspend_or_deadline(self, job: Json, status: Json, deadlines: tuple[str, ...]) -> Json | None:
        if job["spec"].get("suspend"):
            return status | {"jobDeploymentStatus": "Suspending"}
        for field in deadlines:
            limit_s = job["spec"].get(field)
            if limit_s is not None and _age_s(status["startTime"]) >= limit_s:
                reason = {"activeDeadlineSeconds": "DeadlineExceeded"}.get(field, "PreRunningDeadlineExceeded")
                return _failed(status, reason, f"The RayJob has passed the {field}")
        return None

    def _cluster(self, job: Json, status: Json) -> Json | None:
        """The job's cluster; None where it is only now being made."""
        namespace, name = job["metadata"]["namespace"], status["rayClusterName"]
        if found := self._clusters.get(namespace, name):
            return found
        labels = {"ray.io/originated-from-cr-name": job["metadata"]["name"], "ray.io/originated-from-crd": "RayJob"}
        body = {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": job["metadata"].get("labels", {}) | labels,
                "annotations": job["metadata"].get("annotations", {}),
                "ownerReferences": [_owner(job, "RayJob")],
            },
            "spec": job["spec"]["rayClusterSpec"],
        }
        self._kube.create(paths.rayclusters(namespace), body)
        return None

    def _cluster_is_gone(self, job: Json, status: Json) -> bool:
        namespace, name = job["metadata"]["namespace"], status.get("rayClusterName", "")
        found = self._clusters.get(namespace, name)
        if found and "deletionTimestamp" not in found["metadata"]:
            self._kube.delete(paths.rayclusters(namespace, name))
        return found is None

    def _write_status(self, job: Json, status: Json) -> None:
        if status != job.get("status", {}):
            self._kube.replace(f"{_path(job)}/status", job | {"status": status})

    # --- RayCluster --------------------------------------------------------------------------------------------------

    def _reconcile_cluster(self, cluster: Json) -> None:
        meta = cluster["metadata"]
        if "deletionTimestamp" in meta:
            return
        mine = [pod for pod in self._pods.all() if _cluster_of(pod) == (meta["namespace"], meta["name"])]
        wanted = wanted_pods(cluster)
        reason, message = "", ""
        for pod in mine:
            if pod["status"].get("phase") in ("Failed", "Succeeded"):
                self._kube.delete(paths.pods(meta["namespace"], pod["metadata"]["name"]))
        for name in set(wanted) - {pod["metadata"]["name"] for pod in mine}:
            try:
                with suppress_status(409):
                    self._kube.create(paths.pods(meta["namespace"]), wanted[name])
            except KubeError as error:
                reason = "FailedToCreateHeadPod" if name.endswith("-head") else "FailedToCreateWorkerPod"
                message = f"Failed to create Pod {meta['namespace']}/{name}, {error}"
        status = cluster_status(cluster, mine, len(wanted), message)
        if status != cluster.get("status", {}):
            if message:
                self._event(cluster, reason, message)
            self._kube.replace(
                f"{paths.rayclusters(meta['namespace'], meta['name'])}/status", cluster | {"status": status}
            )

    def _event(self, cluster: Json, reason: str, message: str) -> None:
        meta = cluster["metadata"]
        where = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "name": meta["name"], "namespace": meta["namespace"]}
        body = {
            "metadata": {"generateName": f"{meta['name']}-", "namespace": meta["namespace"]},
            "involvedObject": where | {"uid": meta["uid"]},
            "type": "Warning",
            "reason": reason,
            "message": message[:1000],
            "firstTimestamp": _now(),
            "lastTimestamp": _now(),
            "count": 1,
            "source": {"component": "raycluster-controller"},
        }
        self._kube.create(f"/api/v1/namespaces/{meta['namespace']}/events", body)

    def _head(self, namespace: str, cluster: str) -> Json | None:
        return self._pods.get(namespace, f"{cluster}-head")


def validation_problem(spec: Json) -> str:
    """Of what KubeRay refuses, the little that tests bring about; empty where it is content."""
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(field, 1) <= 0:
            return f"The RayJob spec is invalid: {field} must be a positive integer"
    if spec.get("backoffLimit", 0) < 0:
        return "The RayJob spec is invalid: backoffLimit must be a positive integer"
    if spec.get("submissionMode") != "HTTPMode":
        return f"the stand-in knows HTTPMode only, not {spec.get('submissionMode')}"
    return ""


def after_failure(spec: Json, old: Json, new: Json) -> Json:
    """Count the outcome; a failure with tries left becomes Retrying, in the same update."""
    state = new.get("jobDeploymentStatus")
    if old.get("jobDeploymentStatus") == state:
        return new
    failed, succeeded = old.get("failed", 0), old.get("succeeded", 0)
    failed += state == "Failed"
    succeeded += state == "Complete" and new["jobStatus"] == "SUCCEEDED"
    new = new | {"failed": failed, "succeeded": succeeded}
    if state == "Failed" and failed <= spec.get("backoffLimit", 0) and new["reason"] not in ENDS_JOB:
        new.pop("endTime")
        return new | {"jobDeploymentStatus": "Retrying"}
    return new


def wanted_pods(cluster: Json) -> dict[str, Json]:
    """By name: the head and every worker, as the operator makes them of the templates."""
    name, spec = cluster["metadata"]["name"], cluster["spec"]
    found = {f"{name}-head": _pod(cluster, f"{name}-head", "head", "headgroup", spec["headGroupSpec"]["template"])}
    for group in spec.get("workerGroupSpecs", []):
        for index in range(group["replicas"]):
            pod = f"{name}-{group['groupName']}-worker-{index}"
            found[pod] = _pod(cluster, pod, "worker", group["groupName"], group["template"])
            found[pod]["metadata"]["labels"]["ray.io/worker-group-replica-index"] = str(index)
    return found


def _pod(cluster: Json, name: str, node_type: str, group: str, template: Json) -> Json:
    meta, spec = cluster["metadata"], deepcopy(template["spec"])
    labels = {
        "ray.io/is-ray-node": "yes",
        "ray.io/identifier": f"{meta['name']}-{node_type}",
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }
    own = {"ray.io/cluster": meta["name"], "ray.io/node-type": node_type, "ray.io/group": group}
    if node_type == "worker":
        ray = spec["containers"][0]
        few = {"cpu": "200m", "memory": "256Mi"}
        waits = {"name": "wait-gcs-ready", "command": ["/bin/bash", "-c", "--"], "args": ["ray health-check"]}
        waits |= {name: ray[name] for name in ("image", "imagePullPolicy", "securityContext", "env", "volumeMounts")
                  if name in ray}  # fmt: skip
        spec["initContainers"] = [
            *spec.get("initContainers", []),
            waits | {"resources": {"limits": few, "requests": few}},
        ]
    template_meta = template.get("metadata", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": meta["namespace"],
            "labels": labels | template_meta.get("labels", {}) | own,
            "annotations": template_meta.get("annotations", {}),
            "ownerReferences": [_owner(cluster, "RayCluster")],
        },
        "spec": spec,
    }


def cluster_status(cluster: Json, pods: list[Json], num_wanted: int, failure: str) -> Json:
    """`ready` from the moment that every pod ran; it stays so."""
    old = cluster.get("status", {})
    heads = [pod for pod in pods if pod["metadata"]["labels"]["ray.io/node-type"] == "head"]
    status: Json = {"desiredWorkerReplicas": num_wanted - 1, "observedGeneration": cluster["metadata"]["generation"]}
    status["readyWorkerReplicas"] = sum(_is_ready(pod) for pod in pods if pod not in heads)
    if heads:
        status["head"] = {"podName": heads[0]["metadata"]["name"], "podIP": heads[0]["status"].get("podIP", "")}
    if failure:
        condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreatePod", "message": failure[:500]}
        before = [each for each in old.get("conditions", []) if each["message"] == condition["message"]]
        status["conditions"] = before or [condition | {"lastTransitionTime": _now()}]
    all_run = len(pods) == num_wanted and all(_is_ready(pod) for pod in pods)
    if all_run or old.get("state") == "ready":
        status["state"] = "ready"
    return status


def _is_ready(pod: Json) -> bool:
    conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", [])}
    alive = "deletionTimestamp" not in pod["metadata"]
    return alive and pod["status"].get("phase") == "Running" and conditions.get("Ready") == "True"


def _cluster_of(pod: Json) -> tuple[str, str]:
    return pod["metadata"]["namespace"], pod["metadata"].get("labels", {}).get("ray.io/cluster", "")


def _failed(status: Json, reason: str, message: str) -> Json:
    return status | {"jobDeploymentStatus": "Failed", "reason": reason, "message": message, "endTime": _now()}


def _owner(item: Json, kind: str) -> dict[str, Any]:
    meta = item["metadata"]
    owner = {"apiVersion": "ray.io/v1", "kind": kind, "name": meta["name"], "uid": meta["uid"]}
    return owner | {"controller": True, "blockOwnerDeletion": True}


def _path(job: Json) -> str:
    return paths.rayjobs(job["metadata"]["namespace"], job["metadata"]["name"])


def _generated(name: str) -> str:
    letters = random.choices(string.ascii_lowercase + string.digits, k=5)  # as the API server's generateName
    return f"{name}-{''.join(letters)}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _age_s(since: str) -> float:
    return time.time() - datetime.fromisoformat(since).timestamp()

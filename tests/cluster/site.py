"""Where a test works: the stand-ins that serve the whole cluster, a namespace of its own, and steps started in it."""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml
from cluster import kube as paths
from cluster.kube import Json, Kube, Mirror
from cluster.operator_standin import Operator
from cluster.pods_standin import ROOT, Dashboard, HeadPods, Kubelet

from gripline.kube.names import MANAGED_LABEL, ROLE_LABEL, RUN_LABEL, rayjob_name, slug
from gripline.stages import RunContext

ACCOUNT = "gripline-launcher"
CONTROL_NAMESPACE, POD_NETWORK = "glcontrol", "10.0.0.0/16"
"""Of ../shared/cluster: the network namespace of its servers, and the addresses that kwok gives to pods."""
SMALL = {"image": "gripline-test:1", "cpus": 0.1, "memory_gb": 0.2, "shm_gb": 0.1}
SMALL_CLUSTER: Json = {
    "stages": ["rl"],
    "head": SMALL,
    "policy": SMALL,
    "env": SMALL | {"replicas": 1},
    "retries": 0,
    "ttl_after_finished_s": 0,
    "heartbeat_every_s": 1.0,
    "orphan_after_s": 600.0,
}
FINISHED = ("Complete", "Failed", "ValidationFailed")


class AnyOperator(Protocol):
    """KubeRay's operator or the stand-in."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...


class RealOperator:
    """KubeRay's own operator, from a binary."""

    def __init__(self, binary: str, kubeconfig: Path, folder: Path) -> None:
        command = [binary, "--use-kubernetes-proxy", "--enable-leader-election=false"]
        command += ["--metrics-addr=127.0.0.1:0", "--health-probe-bind-address=127.0.0.1:0"]
        with (folder / "operator.log").open("wb") as log:
            environment = os.environ | {"KUBECONFIG": str(kubeconfig)}
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.resume()
        self._process.terminate()
        self._process.wait(20)


@dataclass(frozen=True)
class World:
    """What serves every namespace of the cluster."""

    kube: Kube
    heads: HeadPods
    operator: AnyOperator
    operator_is_real: bool

    def log_of_problems(self) -> list[str]:
        return self.operator.problems if isinstance(self.operator, Operator) else []


@contextmanager
def serve(kube: Kube, kubeconfig: Path, folder: Path) -> Iterator[World]:
    """The insides of pods, their kubelet, and an operator: the binary that KUBERAY_OPERATOR names, or the stand-in."""
    pods = Mirror(kube, "/api/v1/pods")
    heads = HeadPods(pods)
    kubelet = Kubelet(kube, heads, folder)
    binary = os.environ.get("KUBERAY_OPERATOR", "")
    dashboard = Dashboard(heads, CONTROL_NAMESPACE, POD_NETWORK) if binary else None
    operator: AnyOperator = RealOperator(binary, kubeconfig, folder) if binary else Operator(kube, heads, pods)
    try:
        yield World(kube, heads, operator, operator_is_real=bool(binary))
    finally:
        operator.close()
        if dashboard:
            dashboard.close()
        kubelet.close()
        heads.close()
        pods.stop()


class Site:
    """A namespace under pod-security `restricted` with the launcher's account and rights as they are shipped."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.kube, self.folder = world, world.kube, folder
        self.namespace = f"t-{secrets.token_hex(4)}"
        security = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.kube.create("/api/v1/namespaces", {"metadata": {"name": self.namespace, "labels": security}})
        for each in shipped_rights():
            self.apply(each)
        account = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/{ACCOUNT}/token"
        self.token: str = self.kube.create(account, {"spec": {"expirationSeconds": 7200}})["status"]["token"]
        self.kubeconfig = self.kube.kubeconfig(folder / "kubeconfig", self.namespace, token=self.token)
        self.steps: list[Step] = []

    def apply(self, item: Json) -> None:
        """Create one of `shipped_rights`, or replace it."""
        plural = f"{item['kind'].lower()}s"
        group = "/api/v1" if item["apiVersion"] == "v1" else f"/apis/{item['apiVersion']}"
        path = f"{group}/namespaces/{self.namespace}/{plural}"
        body = item | {"metadata": item["metadata"] | {"namespace": self.namespace}}
        if "subjects" in body:
            body["subjects"] = [{"namespace": self.namespace} | subject for subject in body["subjects"]]
        if self.kube.get(f"{path}/{item['metadata']['name']}"):
            self.kube.replace(f"{path}/{item['metadata']['name']}", body)
        else:
            self.kube.create(path, body)

    def launch(self, *script: list[list[Any]], name: str = "run", **options: Any) -> "Step":
        """Start a step that runs the played stage; options: of `Step`."""
        step = Step(self, script, name, **options)
        self.steps.append(step)
        return step

    def rayjob(self, step: "Step") -> Json | None:
        return self.kube.get(paths.rayjobs(self.namespace, step.rayjob_name))

    def status(self, step: "Step") -> Json:
        """Of the step's RayJob; empty where there is none."""
        return (self.rayjob(step) or {}).get("status", {})

    def uid(self, step: "Step") -> str:
        """Of the step's RayJob."""
        job = self.rayjob(step)
        assert job is not None, step.log
        return str(job["metadata"]["uid"])

    def as_launcher(self) -> Kube:
        """The API server for the launcher's account, with its own token."""
        return Kube(self.kube.server, self.token, self.kube.ca_file)

    def without_right(self, resource: str, verb: str) -> None:
        """Take one verb out of the launcher's Role."""
        role = next(each for each in shipped_rights() if each["kind"] == "Role")
        rules = [rule for rule in role["rules"] if verb in rule["verbs"] and resource in rule["resources"]]
        assert rules, f"the Role has no {verb} {resource}"
        for rule in rules:
            rule["verbs"].remove(verb)
        self.apply(role | {"rules": [rule for rule in role["rules"] if rule["verbs"]]})

    def pod(self, name: str, owner: Json | None = None) -> Json:
        """A pod that does nothing, such as that of a step."""
        security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}
        security |= {"seccompProfile": {"type": "RuntimeDefault"}}
        meta: Json = {"name": name}
        if owner:
            names = {key: owner["metadata"][key] for key in ("name", "uid")}
            meta["ownerReferences"] = [{"apiVersion": owner["apiVersion"], "kind": owner["kind"], **names}]
        containers = [{"name": "main", "image": "gripline-test:1", "securityContext": security}]
        return self.kube.create(paths.pods(self.namespace), {"metadata": meta, "spec": {"containers": containers}})

    def workflow(self, name: str) -> Json:
        """A run of a pipeline: an object of Argo's kind, which nothing works on."""
        install_workflows(self.kube)
        body = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": name}}
        return self.kube.create(f"/apis/argoproj.io/v1alpha1/namespaces/{self.namespace}/workflows", body)

    def pods_of(self, step: "Step", role: str) -> list[Json]:
        """A step's pods of one role: head, policy or env."""
        selector = f"{RUN_LABEL}={slug(step.run_name)},{ROLE_LABEL}={role}"
        return self.kube.items(paths.pods(self.namespace), selector)

    def pod_on(self, node: str) -> Json | None:
        """The first pod that is bound to a node."""
        found = self.kube.items(paths.pods(self.namespace))
        return next((pod for pod in found if pod["spec"].get("nodeName") == node), None)

    def running(self, step: "Step | None" = None) -> list[str]:
        """What still takes resources, or will: RayJobs that have not ended, Ray clusters, pods, drivers.

        Of one step, or of all.
        """
        selector = f"{MANAGED_LABEL}=gripline" + (f",{RUN_LABEL}={slug(step.run_name)}" if step else "")
        jobs = self.kube.items(paths.rayjobs(self.namespace), selector)
        alive = [job for job in jobs if job.get("status", {}).get("jobDeploymentStatus") not in FINISHED]
        clusters = self.kube.items(paths.rayclusters(self.namespace), selector)
        pods = self.kube.items(paths.pods(self.namespace), selector)
        drivers = self.world.heads.running(self.namespace, step.rayjob_name if step else "")
        found = [f"{item['kind']} {item['metadata']['name']}" for item in (*alive, *clusters, *pods)]
        return found + [f"driver {job_id}" for job_id in drivers]

    def left(self) -> list[str]:
        """`running`, and RayJobs that have ended but are still there."""
        jobs = self.kube.items(paths.rayjobs(self.namespace))
        return sorted({*self.running(), *(f"RayJob {job['metadata']['name']}" for job in jobs)})

    def close(self) -> None:
        """Nothing of the test goes on; what belongs to the namespace goes with it."""
        for step in self.steps:
            step.kill()
        for job in self.kube.items(paths.rayjobs(self.namespace)):
            self.kube.delete(paths.rayjobs(self.namespace, job["metadata"]["name"]))
        self.kube.delete(f"/api/v1/namespaces/{self.namespace}")


@dataclass(frozen=True)
class Line:
    """A line that a step printed, and when it came."""

    text: str
    time_s: float


@dataclass
class Step:
    """A step as a process, started when made."""

    site: Site
    script: tuple[list[list[Any]], ...]
    run_name: str
    job: str = "rl"
    cluster: Mapping[str, Any] = field(default_factory=dict)
    """What differs from `SMALL_CLUSTER`."""
    kubeconfig: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    note: str = "a note"
    """Text of the stage's input file."""
    run_dir: str = ""
    """Empty: a folder of the site."""

    def __post_init__(self) -> None:
        self.folder = self.site.folder / f"{self.run_name}-{len(self.site.steps)}"
        self.folder.mkdir()
        self.run_path = self.site.folder / "store" / self.run_name
        self.run_dir = self.run_dir or str(self.run_path)
        self.rayjob_name = rayjob_name(self.run_dir, self.run_name, self.job)
        self.returned, self.results = self.folder / "returned.json", self.folder / "results.txt"
        (self.folder / "note.txt").write_text(self.note)
        (self.folder / "spec.json").write_text(json.dumps(self._spec()))
        self.lines: list[Line] = []
        self.started_s = time.time()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cluster.step", str(self.folder / "spec.json")],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        return "\n".join(line.text for line in self.lines)

    def wait(self, timeout_s: float = 100.0) -> int:
        """The exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join(5)
        return code

    def until(self, pattern: str, timeout_s: float = 30.0) -> Line:
        """The first printed line with this regular expression in it."""
        return eventually(
            lambda: next((line for line in list(self.lines) if re.search(pattern, line.text)), None),
            f"a line {pattern!r}",
            timeout_s=timeout_s,
            context=lambda: self.log,
        )

    def until_running(self, timeout_s: float = 60.0) -> None:
        """The driver plays, and its output arrives here."""
        self.until("of the played stage", timeout_s)

    def terminate(self, then_kill_after_s: float | None = None) -> None:
        """As a pod ends: SIGTERM, and SIGKILL after the time that is left (KFP: half a second)."""
        self.process.send_signal(signal.SIGTERM)
        if then_kill_after_s is not None:
            try:
                self.process.wait(then_kill_after_s)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def attempts(self) -> int:
        path = self.run_path / "played" / "attempts"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def _spec(self) -> Json:
        context = RunContext(
            run_name=self.run_name,
            run_dir=self.run_dir,
            tracking_uri="http://127.0.0.1:9",
            experiment="tests",
            parent_run_id="p0",
            profile_name="played",
            seed=0,
            split_hashes={},
        )
        return {
            "job": self.job,
            "cluster": json.dumps(SMALL_CLUSTER | dict(self.cluster)),
            "context": context.model_dump_json(),
            "arguments": {"script": json.dumps(self.script)},
            "files": {"note_path": str(self.folder / "note.txt")},
            "outputs": {"results_path": str(self.results)},
            "returned": str(self.returned),
        }

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        own = {
            "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "KUBECONFIG": str(self.kubeconfig or self.site.kubeconfig),
        }
        return kept | own | dict(self.environment)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(Line(line.rstrip("\n"), time.time()))


def shipped_rights(account: str = ACCOUNT) -> list[Json]:
    """The launcher's ServiceAccount, Role and RoleBinding, as manifests/ has them."""
    text = (ROOT / "manifests/base/runs/launcher.yaml").read_text()
    return [each for each in yaml.safe_load_all(text) if each["metadata"]["name"] == account]


def install_workflows(kube: Kube) -> None:
    """Argo's Workflow as a kind of object, without its controller."""
    crds, name = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "workflows.argoproj.io"
    if kube.get(f"{crds}/{name}") is None:
        schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
        version = {"name": "v1alpha1", "served": True, "storage": True, "schema": schema}
        names = {"plural": "workflows", "singular": "workflow", "kind": "Workflow"}
        spec = {"group": "argoproj.io", "scope": "Namespaced", "names": names, "versions": [version]}
        kube.create(crds, {"metadata": {"name": name}, "spec": spec})
    path = "/apis/argoproj.io/v1alpha1/workflows"
    eventually(lambda: kube.get(path), "API of workflows")


def eventually(
    look: Callable[[], Any],
    what: str,
    *,
    timeout_s: float = 30.0,
    every_s: float = 0.1,
    context: Callable[[], str] = str,
) -> Any:
    """What `look` returns, once that is true."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(every_s)
    raise AssertionError(f"no {what} within {timeout_s:g} s\n{context()}")


def nothing(look: Callable[[], list[str]], what: str, timeout_s: float = 30.0) -> float:
    """Wait until a list is empty; returns the seconds that it took."""
    begun = time.monotonic()
    eventually(lambda: not look(), f"end of {what}", timeout_s=timeout_s, every_s=0.2, context=lambda: str(look()))
    return time.monotonic() - begun

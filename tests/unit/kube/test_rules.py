"""What a cluster would refuse of a RayJob is refused here first, by the field of the profile that led to it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from gripline.cluster_config import ClusterConfig
from gripline.errors import UserError
from gripline.kube import names, rules
from gripline.kube.rayjob import Job, render

Json = dict[str, Any]
PODS: Json = {"image": "gripline-step:1"}
RT: Json = {"label": "nvidia.com/gpu.product", "values": ["NVIDIA-L40S"]}
PLACEMENT: Json = {
    "name": "mine",
    "node_affinity": [RT],
    "tolerations": [{"key": "nvidia.com/gpu", "value": "present"}],
    "gpu_resource": "nvidia.com/gpu",
    "runtime_class": "nvidia",
}


def make_manifest(**fields: Any) -> Json:
    body: Json = {
        "head": PODS,
        "policy": PODS,
        "env": PODS | {"placement": PLACEMENT, "gpus": 1, "rendering": "egl"},
        "secrets": ["store"],
        "pull_secrets": ["registry"],
        "queue": "gripline",
        "priority_class": "low",
        "service_account": "ray",
        "namespace": "runs",
        "cache_claim": "caches",
    }
    body |= {key: body[key] | value if isinstance(value, dict) else value for key, value in fields.items()}
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "launcher", "uid": "1"}
    return render(Job("run", "s3://bucket/run", "rl", ClusterConfig.model_validate(body), owner=owner))


def cluster_of(manifest: Json) -> Json:
    cluster: Json = manifest["spec"]["rayClusterSpec"]
    return cluster


def env_group(manifest: Json) -> Json:
    group: Json = cluster_of(manifest)["workerGroupSpecs"][1]
    return group


def env_pod(manifest: Json) -> Json:
    spec: Json = env_group(manifest)["template"]["spec"]
    return spec


def env_ray(manifest: Json) -> Json:
    container: Json = env_pod(manifest)["containers"][0]
    return container


def set_env(name: str, value: str) -> Callable[[Json], object]:
    return lambda manifest: env_ray(manifest)["env"].append({"name": name, "value": value})


def add_groups(manifest: Json) -> None:
    groups = cluster_of(manifest)["workerGroupSpecs"]
    groups += [groups[0] | {"groupName": f"g{number}"} for number in range(16)]


def requirement(manifest: Json) -> Json:
    affinity = env_pod(manifest)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    found: Json = affinity["nodeSelectorTerms"][0]["matchExpressions"][0]
    return found


def set_resource(kind: str, name: str, value: str) -> Callable[[Json], object]:
    return lambda manifest: env_ray(manifest)["resources"][kind].update({name: value})


def set_resources(name: str, value: str) -> Callable[[Json], object]:
    return lambda manifest: [
        env_ray(manifest)["resources"][kind].update({name: value}) for kind in ("requests", "limits")
    ]


Case = tuple[Callable[[Json], object], str, str]

KUBERAY: dict[str, Case] = {
    "name too long": (lambda m: m["metadata"].update(name="a" * 48), "run_name", "at most 47"),
    "name begins with a digit": (lambda m: m["metadata"].update(name="7b"), "run_name", "DNS-1035"),
    "ttl below zero": (lambda m: m["spec"].update(ttlSecondsAfterFinished=-1), "cluster.ttl_after_finished_s", "-1"),
    "retries below zero": (lambda m: m["spec"].update(backoffLimit=-1), "cluster.retries", "-1"),
    "no time": (lambda m: m["spec"].update(activeDeadlineSeconds=0), "cluster.attempt_timeout_s", "from 1"),
    "no time to start": (lambda m: m["spec"].update(preRunningDeadlineSeconds=0), "cluster.start_timeout_s", "from 1"),
    "no deadline": (lambda m: m["spec"].pop("activeDeadlineSeconds"), "cluster.attempt_timeout_s", "None"),
    "no start deadline": (lambda m: m["spec"].pop("preRunningDeadlineSeconds"), "cluster.start_timeout_s", "None"),
    "more than an int32": (lambda m: m["spec"].update(activeDeadlineSeconds=2**31), "cluster.attempt_timeout_s", ""),
    "cluster is kept": (
        lambda m: m["spec"].update(shutdownAfterJobFinishes=False),
        "cluster.ttl_after_finished_s",
        "shutdownAfterJobFinishes",
    ),
    "a sidecar submits": (lambda m: m["spec"].update(submissionMode="SidecarMode"), "", "restricted"),
    "a pod submits": (lambda m: m["spec"].update(submissionMode="K8sJobMode"), "", "submissionMode"),
    "default mode": (lambda m: m["spec"].pop("submissionMode"), "", "submissionMode"),
    "no entrypoint": (lambda m: m["spec"].update(entrypoint=" "), "", "entrypoint"),
    "deletion rules": (lambda m: m["spec"].update(deletionStrategy={}), "", "spec.deletionStrategy"),
    "another cluster": (lambda m: m["spec"].update(clusterSelector={}), "", "spec.clusterSelector"),
    "Redis": (lambda m: cluster_of(m).update(gcsFaultToleranceOptions={}), "", "rayClusterSpec.gcsFault"),
    "idle workers": (lambda m: env_group(m).update(idleTimeoutSeconds=1), "", "workerGroupSpecs[1].idleTimeout"),
    "resources in two places": (lambda m: env_group(m).update(resources={"CPU": "1"}), "", "[1].resources"),
    "labels as parameter": (lambda m: env_group(m)["rayStartParams"].update(labels="a=b"), "cluster.env", "labels"),
    "parameter is a number": (
        lambda m: env_group(m)["rayStartParams"].update({"num-cpus": 1}),
        "cluster.env",
        "num-cpus",
    ),
    "no parameters": (lambda m: env_group(m).pop("rayStartParams"), "cluster.env", "rayStartParams"),
    "no maximum": (lambda m: env_group(m).pop("maxReplicas"), "cluster.env.replicas", "absent"),
    "maximum below minimum": (lambda m: env_group(m).update(maxReplicas=1), "cluster.env.replicas", "[2, 2, 1]"),
    "replicas below zero": (lambda m: env_group(m).update(minReplicas=-1), "cluster.env.replicas", "below 0"),
    "no container": (lambda m: env_pod(m).update(containers=[]), "cluster.env", "no container"),
    "Redis address": (set_env("RAY_REDIS_ADDRESS", "x"), "cluster.env.container_env.RAY_REDIS_ADDRESS", "KubeRay"),
    "Redis user": (set_env("REDIS_USERNAME", "x"), "cluster.env.container_env.REDIS_USERNAME", "KubeRay"),
    "autoscaler": (set_env("RAY_enable_autoscaler_v2", "1"), "cluster.env.container_env.RAY_enable", "KubeRay"),
    "Ray's address": (set_env("RAY_ADDRESS", "x"), "cluster.env.container_env.RAY_ADDRESS", "KubeRay"),
    "no version": (lambda m: cluster_of(m).pop("rayVersion"), "", "rayVersion"),
    "KubeRay's annotation": (
        lambda m: m["metadata"]["annotations"].update({"ray.io/ft-enabled": "true"}),
        "",
        "ray.io/ft",
    ),
    "two groups of one name": (lambda m: env_group(m).update(groupName="policy"), "cluster", "twice"),
    "group name": (lambda m: env_group(m).update(groupName="Env"), "cluster", "'Env'"),
    "store too small": (
        lambda m: env_group(m)["rayStartParams"].update({"object-store-memory": "1000"}),
        "cluster.env.shm_gb",
        "75 MiB",
    ),
}
KUEUE: dict[str, Case] = {
    "too many podsets": (add_groups, "cluster", "19 kinds of pods"),
    "group called head": (lambda m: env_group(m).update(groupName="head"), "cluster", "'head'"),
    "autoscaling": (lambda m: cluster_of(m).update(enableInTreeAutoscaling=True), "cluster", "autoscaling"),
    "queue's name": (
        lambda m: m["metadata"]["labels"].update({names.QUEUE_LABEL: "My_Queue"}),
        "cluster.queue",
        "My_Queue",
    ),
    "queue too long for a label": (
        lambda m: m["metadata"]["labels"].update({names.QUEUE_LABEL: "a" * 64}),
        "cluster.queue",
        "63",
    ),
}
KUBERNETES: dict[str, Case] = {
    "namespace": (lambda m: m["metadata"].update(namespace="a.b"), "cluster.namespace", "a.b"),
    "owner without uid": (lambda m: m["metadata"]["ownerReferences"][0].pop("uid"), "", "uid"),
    "label": (lambda m: m["metadata"]["labels"].update({names.RUN_LABEL: "a/b"}), "run_name", "a/b"),
    "pod's label": (lambda m: env_group(m)["template"]["metadata"]["labels"].update(x="-"), "run_name", "x=-"),
    "Secret": (
        lambda m: env_ray(m)["envFrom"][0]["secretRef"].update(name="my_secret"),
        "cluster.secrets",
        "my_secret",
    ),
    "pull secret": (lambda m: env_pod(m)["imagePullSecrets"][0].update(name="A"), "cluster.pull_secrets", "'A'"),
    "service account": (lambda m: env_pod(m).update(serviceAccountName="a..b"), "cluster.service_account", "a..b"),
    "priority": (lambda m: env_pod(m).update(priorityClassName="High"), "cluster.priority_class", "High"),
    "claim": (
        lambda m: env_pod(m)["volumes"][2]["persistentVolumeClaim"].update(claimName="_"),
        "cluster.cache_claim",
        "'_'",
    ),
    "runtime class": (lambda m: env_pod(m).update(runtimeClassName="NV"), "cluster.env.placement", "runtime_class"),
    "label of a node": (lambda m: requirement(m).update(key="a/b/c"), "cluster.env.placement", "a/b/c"),
    "value of a node's label": (lambda m: requirement(m).update(values=["a b"]), "cluster.env.placement", "a b"),
    "no value": (lambda m: requirement(m).update(values=[]), "cluster.env.placement", "[]"),
    "taint": (lambda m: env_pod(m)["tolerations"][0].update(key="/x"), "cluster.env.placement", "taint"),
    "taint's value": (lambda m: env_pod(m)["tolerations"][0].update(value="a b"), "cluster.env.placement", "taint"),
    "taint's effect": (lambda m: env_pod(m)["tolerations"][0].update(effect="No"), "cluster.env.placement", "effect"),
    "GPU resource": (set_resources("gpu", "1"), "cluster.env.placement", "gpu_resource"),
    "half a GPU": (set_resources("nvidia.com/gpu", "500m"), "cluster.env.gpus", "500m"),
    "no CPU": (set_resources("cpu", "0"), "cluster.env.cpus", "0 is too little"),
    "no memory": (set_resources("memory", "0Gi"), "cluster.env.memory_gb", "0Gi"),
    "requests differ": (set_resource("requests", "cpu", "1"), "cluster.env", "equal"),
    "no image": (lambda m: env_ray(m).update(image=""), "cluster.env.image", "is empty"),
    "image with a space": (lambda m: env_ray(m).update(image="a b"), "cluster.env.image", "'a b'"),
    "image in capitals": (lambda m: env_ray(m).update(image="Mine:1"), "cluster.env.image", "'Mine:1'"),
    "variable's name": (set_env("a-b", "x"), "cluster.env.container_env", "'a-b'"),
    "secret by name": (set_env("WANDB_API_KEY", "x"), "cluster.env.container_env.WANDB_API_KEY", "secret"),
    "token": (set_env("HF_TOKEN", "x"), "cluster.env.container_env.HF_TOKEN", "secret"),
    "password": (set_env("MLFLOW_TRACKING_PASSWORD", "x"), "cluster.env.container_env.MLFLOW", "secret"),
    "password in an address": (set_env("PROXY", "http://me:pw@host"), "cluster.env.container_env.PROXY", "secret"),
    "container's name": (lambda m: env_ray(m).update(name="Ray"), "cluster.env", "'Ray'"),
    "two containers": (lambda m: env_pod(m)["containers"].append(env_ray(m)), "cluster.env", "one name"),
    "two volumes": (lambda m: env_pod(m)["volumes"].append({"name": "tmp", "emptyDir": {}}), "", "twice"),
    "mount without a volume": (lambda m: env_ray(m)["volumeMounts"][0].update(name="x"), "", "/tmp"),
    "two mounts": (lambda m: env_ray(m)["volumeMounts"][1].update(mountPath="/tmp"), "", "twice"),
    "a probe": (lambda m: env_ray(m).update(livenessProbe={}), "cluster.env", "livenessProbe"),
}
RESTRICTED: dict[str, Case] = {
    "root": (lambda m: env_pod(m)["securityContext"].update(runAsUser=0), "cluster.run_as_user", "runAsNonRoot"),
    "perhaps root": (lambda m: env_pod(m)["securityContext"].pop("runAsNonRoot"), "cluster.run_as_user", ""),
    "root again": (lambda m: env_ray(m)["securityContext"].update(runAsNonRoot=False), "cluster.run_as_user", ""),
    "no seccomp": (lambda m: env_pod(m)["securityContext"].pop("seccompProfile"), "", "seccompProfile"),
    "unconfined": (
        lambda m: env_ray(m)["securityContext"].update(seccompProfile={"type": "Unconfined"}),
        "",
        "seccompProfile",
    ),
    "escalation": (lambda m: env_ray(m)["securityContext"].pop("allowPrivilegeEscalation"), "", "Escalation"),
    "privileged": (lambda m: env_ray(m)["securityContext"].update(privileged=True), "", "privileged"),
    "capabilities kept": (lambda m: env_ray(m)["securityContext"].pop("capabilities"), "", "capabilities"),
    "capability added": (
        lambda m: env_ray(m)["securityContext"]["capabilities"].update(add=["SYS_PTRACE"]),
        "",
        "capabilities",
    ),
    "writable": (lambda m: env_ray(m)["securityContext"].update(readOnlyRootFilesystem=False), "", "readOnly"),
    "procMount": (lambda m: env_ray(m)["securityContext"].update(procMount="Unmasked"), "", "others"),
    "host port": (lambda m: env_ray(m).update(ports=[{"containerPort": 1, "hostPort": 1}]), "", "ports"),
    "host network": (lambda m: env_pod(m).update(hostNetwork=True), "cluster.env", "hostNetwork"),
    "host path": (lambda m: env_pod(m)["volumes"][0].update(hostPath={"path": "/"}), "", "forbids"),
    "log container": (
        lambda m: cluster_of(m)["headGroupSpec"]["template"]["spec"]["initContainers"][0].update(securityContext={}),
        "",
        "driver-log",
    ),
}
ALL = KUBERAY | KUEUE | KUBERNETES | RESTRICTED


def test_what_is_rendered_is_refused_by_no_rule() -> None:
    assert list(rules.refusals(make_manifest())) == []


@pytest.mark.parametrize("case", ALL)
def test_refused(case: str) -> None:
    """Catches: a RayJob that waits for pods that never come, or that KubeRay gives up without a word in the log."""
    change, field, told = ALL[case]
    manifest = json.loads(json.dumps(make_manifest()))
    change(manifest)
    found = list(rules.refusals(manifest))
    assert any(each.field.startswith(field) and (each.field or not field) and told in each.problem for each in found), (
        found
    )
    with pytest.raises(UserError) as refused:
        rules.check(manifest)
    assert refused.value.where == "profile" and refused.value.next_step


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"env": {"container_env": {"OMNI_TOKEN": "x"}}}, "cluster.env.container_env.OMNI_TOKEN: looks like a secret"),
        ({"head": {"image": ""}}, "cluster.head.image: is empty"),
        ({"policy": {"cpus": 0.0001}}, "cluster.policy.cpus: 0 is too little"),
        ({"policy": {"shm_gb": 0.05}}, "cluster.policy.shm_gb: leaves Ray's object store less than 75 MiB"),
        ({"queue": "a" * 64}, "cluster.queue: 'aaa"),
        ({"secrets": ["My Secret"]}, "cluster.secrets: 'My Secret' is no name"),
        ({"ttl_after_finished_s": 2**31}, "cluster.ttl_after_finished_s: must be from 0 to 2147483647"),
    ],
)
def test_a_profile_is_refused_by_its_own_field(fields: Json, told: str) -> None:
    with pytest.raises(UserError) as refused:
        make_manifest(**fields)
    assert refused.value.line.startswith(f"profile: {told}")


@pytest.mark.parametrize(
    "image",
    [
        "gripline-env:1",
        "localhost/gripline-policy:0.1.0",
        "registry.example:5000/a/b_c/d-e",
        "nvcr.io/nvidia/isaac-sim:5.1.0",
        f"a/b@sha256:{'0' * 64}",
        f"a/b:1@sha256:{'0' * 64}",
    ],
)
def test_images_that_exist_are_taken(image: str) -> None:
    make_manifest(env={"image": image})


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "KEYBOARD", "MONKEY", "ACCEPT_EULA", "MLFLOW_TRACKING_URI"])
def test_a_variable_that_only_sounds_like_a_secret_is_taken(name: str) -> None:
    make_manifest(env={"container_env": {name: "https://host/path@x"}})

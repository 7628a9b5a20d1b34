"""What Kubernetes would refuse of a pod: wrong names and amounts, and what pod-security `restricted` forbids.

A pod's template inside of a RayJob is not looked at when the RayJob is created. KubeRay makes the pods later, and their
refusal is an event that nobody reads while the job waits for them. So the rules are held here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gripline import credentials
from gripline.cluster_config import LABEL_VALUE
from gripline.kube import names

Json = dict[str, Any]

DNS_1123_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
DNS_1123_SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
QUALIFIED_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
QUANTITY = re.compile(r"([1-9][0-9]*)(m|Mi|Gi)?")
WHOLE = re.compile(r"[1-9][0-9]*")
IMAGE = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?/)?"  # registry
    r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"  # name
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
EFFECTS = {"NoSchedule", "PreferNoSchedule", "NoExecute"}

SECRET_WORDS = {"KEY", "KEYS", "APIKEY", "TOKEN", "PASSWORD", "PASSWD", "SECRET"}
"""Between underscores of a variable's name."""
KUBERAYS = {
    "RAY_ADDRESS", "RAY_PORT", "RAY_IP", "FQ_RAY_IP", "RAY_CLUSTER_NAME", "RAY_CLUSTER_NAMESPACE",
    "RAY_CLOUD_INSTANCE_ID", "RAY_NODE_TYPE_NAME", "RAY_USAGE_STATS_EXTRA_TAGS", "KUBERAY_GEN_RAY_START_CMD",
}  # fmt: skip
"""Variables that KubeRay sets; with another value, pods do not find each other."""
FAULT_TOLERANCE = {"RAY_REDIS_ADDRESS", "REDIS_USERNAME", "REDIS_PASSWORD", "RAY_enable_autoscaler_v2"}
"""Variables that KubeRay refuses or reads: a lost head's job starts again from its checkpoint instead."""

POD_FIELDS = {
    "automountServiceAccountToken", "enableServiceLinks", "restartPolicy", "securityContext", "runtimeClassName",
    "affinity", "tolerations", "serviceAccountName", "priorityClassName", "imagePullSecrets",
    "terminationGracePeriodSeconds", "containers", "initContainers", "volumes",
}  # fmt: skip
"""Without hostNetwork, hostPID, hostIPC, hostAliases and the like, which `restricted` forbids or nobody has checked."""
CONTAINER_FIELDS = {
    "name", "image", "imagePullPolicy", "workingDir", "command", "env", "envFrom", "ports", "resources",
    "restartPolicy", "securityContext", "volumeMounts",
}  # fmt: skip
VOLUMES = {"emptyDir", "persistentVolumeClaim"}
"""Of the kinds that `restricted` allows, those that gripline renders."""


@dataclass(frozen=True)
class Refusal:
    """Why a cluster would refuse a RayJob or its pods."""

    field: str
    """Of the profile; empty where no field leads there."""
    problem: str
    next_step: str


def section_of(template: Json) -> str:
    """The profile's section that a pod's template was rendered from."""
    return f"cluster.{template['metadata']['labels'][names.ROLE_LABEL]}"


def refusals(template: Json) -> Iterator[Refusal]:
    """Everything that a cluster would refuse of one kind of pod."""
    section, spec = section_of(template), template["spec"]
    for key in sorted(set(spec) - POD_FIELDS):
        yield Refusal(section, f"a pod's {key} is not rendered by gripline, so no rule has checked it", "leave it out")
    yield from label_refusals(template["metadata"]["labels"], "run_name")
    yield from _references(spec)
    yield from _where(spec, f"{section}.placement")
    yield from _volumes(spec)
    containers = [*spec["containers"], *spec.get("initContainers", [])]
    if not spec["containers"]:
        yield Refusal(section, "the pod has no container", "render Ray's")
    if len({container["name"] for container in containers}) < len(containers):
        yield Refusal(section, "two containers have one name", "rename one")
    volumes = {volume["name"] for volume in spec["volumes"]}
    for container in containers:
        yield from _container(container, section, volumes)
        yield from _restricted(container, spec["securityContext"])


def label_refusals(labels: Mapping[str, str], field: str) -> Iterator[Refusal]:
    for key, value in labels.items():
        if not _is_qualified(key) or not re.fullmatch(LABEL_VALUE, value):
            yield Refusal(field, f"{key}={value} is no label", "use at most 63 letters, digits, dashes and dots")


def _references(spec: Json) -> Iterator[Refusal]:
    """Names of other objects."""
    names_of = {
        "cluster.service_account": [spec.get("serviceAccountName", "default")],
        "cluster.priority_class": [spec.get("priorityClassName", "default")],
        "cluster.pull_secrets": [secret["name"] for secret in spec.get("imagePullSecrets", [])],
        "cluster.cache_claim": [
            volume["persistentVolumeClaim"]["claimName"]
            for volume in spec["volumes"]
            if "persistentVolumeClaim" in volume
        ],
        "cluster.secrets": [
            source["secretRef"]["name"] for container in spec["containers"] for source in container.get("envFrom", [])
        ],
    }
    for field, found in names_of.items():
        for name in found:
            if not DNS_1123_SUBDOMAIN.fullmatch(name):
                step = "use lower-case letters, digits, dashes and dots, as the object's own name does"
                yield Refusal(field, f"{name!r} is no name of an object", step)


def _where(spec: Json, field: str) -> Iterator[Refusal]:
    """On which nodes the pod may run."""
    if not DNS_1123_SUBDOMAIN.fullmatch(spec.get("runtimeClassName", "default")):
        yield Refusal(field, f"runtime_class {spec['runtimeClassName']!r} is no name of a RuntimeClass", "mend it")
    for requirement in _requirements(spec):
        wrong = [value for value in requirement["values"] if not re.fullmatch(LABEL_VALUE, value)]
        if not _is_qualified(requirement["key"]) or wrong or not requirement["values"]:
            problem = f"node_affinity: {requirement['key']} in {requirement['values']} is no label and its values"
            yield Refusal(field, problem, "a label is PREFIX/NAME; a value has at most 63 letters, digits, -, _ and .")
    for toleration in spec.get("tolerations", []):
        value = toleration.get("value", "")
        if not _is_qualified(toleration["key"]) or not re.fullmatch(LABEL_VALUE, value):
            yield Refusal(
                field, f"tolerations: {toleration['key']}={value} is no taint", "as `kubectl describe node` says"
            )
        if toleration.get("effect", "NoSchedule") not in EFFECTS:
            yield Refusal(field, f"tolerations: {toleration['effect']!r} is no effect", f"one of {sorted(EFFECTS)}")


def _requirements(spec: Json) -> list[Json]:
    affinity = spec.get("affinity")
    if affinity is None:
        return []
    terms = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return [requirement for term in terms for requirement in term["matchExpressions"]]


def _volumes(spec: Json) -> Iterator[Refusal]:
    found = [volume["name"] for volume in spec["volumes"]]
    for volume in spec["volumes"]:
        if found.count(volume["name"]) > 1 or not set(volume) - {"name"} <= VOLUMES:
            problem = f"volume {volume['name']!r} is there twice, or of a kind that pod-security restricted forbids"
            yield Refusal("", problem, f"use {' or '.join(sorted(VOLUMES))}")


def _container(container: Json, section: str, volumes: set[str]) -> Iterator[Refusal]:
    for key in sorted(set(container) - CONTAINER_FIELDS):
        yield Refusal(
            section, f"a container's {key} is not rendered by gripline, so no rule has checked it", "leave it out"
        )
    if not DNS_1123_LABEL.fullmatch(container["name"]):
        yield Refusal(section, f"{container['name']!r} is no name of a container", "rename it")
    image = container["image"]
    if not IMAGE.fullmatch(image):
        problem = f"{image!r} is no image" if image else "is empty"
        yield Refusal(f"{section}.image", problem, "name one, such as registry.example/team/gripline-policy:1")
    yield from _environment(container.get("env", []), f"{section}.container_env")
    yield from _resources(container["resources"], section)
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    for mount in container["volumeMounts"]:
        if mount["name"] not in volumes or paths.count(mount["mountPath"]) > 1:
            yield Refusal(
                "", f"the mount at {mount['mountPath']} has no volume, or is there twice", "mend the template"
            )


def _environment(variables: list[Json], field: str) -> Iterator[Refusal]:
    for variable in variables:
        name, value = variable["name"], variable.get("value", "")
        if not VARIABLE.fullmatch(name):
            yield Refusal(field, f"{name!r} is no name of a variable", "use letters, digits and underscores")
        if name in KUBERAYS | FAULT_TOLERANCE:
            yield Refusal(
                f"{field}.{name}", "belongs to KubeRay, which refuses it or loses the cluster by it", "leave it out"
            )
        if SECRET_WORDS & set(name.upper().split("_")) or credentials.redacted(value) != value:
            problem = "looks like a secret, and whoever may read the RayJob could read it"
            yield Refusal(
                f"{field}.{name}", problem, "put it into a Secret, and the Secret's name into cluster.secrets"
            )


def _resources(resources: Json, section: str) -> Iterator[Refusal]:
    fields = {"cpu": f"{section}.cpus", "memory": f"{section}.memory_gb"}
    requests, limits = resources["requests"], resources["limits"]
    for name, amount in limits.items():
        extended = name not in fields
        if extended and ("/" not in name or not _is_qualified(name) or "kubernetes.io/" in name):
            yield Refusal(f"{section}.placement", f"gpu_resource {name!r} is none", "a resource is DOMAIN/NAME")
        if not (WHOLE if extended else QUANTITY).fullmatch(amount):
            field = f"{section}.gpus" if extended else fields[name]
            yield Refusal(field, f"{amount} is too little or no amount of {name}", "set it higher")
    if requests != limits or not set(fields) <= set(limits):
        problem = "requests and limits must be equal, and name cpu and memory"
        yield Refusal(section, f"{problem}, or the pod is the first that a full node ends", "set both")


def _restricted(container: Json, pod: Json) -> Iterator[Refusal]:
    """Pod-security `restricted`, of which the kinds of volumes and the host's namespaces are looked at above."""
    own = container["securityContext"]
    effective = pod | own
    user = effective.get("runAsUser", 0)
    rules = {
        "runAsNonRoot": effective.get("runAsNonRoot") is True and user != 0,
        "seccompProfile": effective.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
        "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
        "privileged": not own.get("privileged"),
        "capabilities": "ALL" in own.get("capabilities", {}).get("drop", []) and not own["capabilities"].get("add"),
        "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is True,  # our own rule
        "ports": not any("hostPort" in port for port in container.get("ports", [])),
        "others": set(own) <= {"runAsNonRoot", "runAsUser", "runAsGroup", "seccompProfile", "allowPrivilegeEscalation",
                               "privileged", "capabilities", "readOnlyRootFilesystem"},
    }  # fmt: skip
    for rule, kept in rules.items():
        if not kept:
            problem = f"container {container['name']!r} breaks pod-security restricted by its {rule}"
            yield Refusal("cluster.run_as_user" if rule == "runAsNonRoot" else "", problem, "mend the template")


def _is_qualified(name: str) -> bool:
    """The key of a label, of a taint or of a resource: [subdomain/]name."""
    prefix, slash, rest = name.rpartition("/")
    return bool(QUALIFIED_NAME.fullmatch(rest)) and (not slash or bool(DNS_1123_SUBDOMAIN.fullmatch(prefix)))

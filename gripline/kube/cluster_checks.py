"""What a cluster has of what a profile needs: KubeRay, rights, nodes, and the objects that the profile names."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from gripline.cluster_config import ClusterConfig
from gripline.kube.api import ForbiddenError, NoSuchKindError, NotFoundError, Object, RefusedError, UnavailableError
from gripline.kube.findings import OK, UNKNOWN, WRONG, Finding
from gripline.kube.pools import pools, shortfalls

MANIFESTS = "kubectl apply -k manifests/overlays/…"
KUBERAY = "helm install kuberay-operator kuberay/kuberay-operator --version 1.7.0 -n kuberay --create-namespace"
GROWING = (
    "cloud.google.com/gke-nodepool",
    "eks.amazonaws.com/nodegroup",
    "karpenter.sh/nodepool",
    "kubernetes.azure.com/agentpool",
)
"""Labels of nodes that an autoscaler may add to: what does not fit now may fit in a minute."""
OPERATOR_LABEL = "app.kubernetes.io/name in (kuberay-operator, kuberay)"
"""On the operator's Deployment: by Helm the former, by KubeRay's own kustomization the latter."""
RIGHTS = (
    ("ray.io", "rayjobs", ("create", "get", "patch", "delete")),
    ("", "pods", ("get", "list")),
    ("", "pods/log", ("get",)),
    ("", "events", ("list",)),
)
"""What the launcher does: (API group, resource, verbs). The Role in manifests/base grants exactly this."""
POOLS = "`gripline doctor --kube` tells which placement fits which pool"


class Reader(Protocol):
    """What the checks ask of the API server. Every method raises ApiError."""

    namespace: str

    def nodes(self) -> list[Object]: ...
    def read(self, resource: str, path: str, query: Mapping[str, str] | None = None) -> Object: ...
    def review(self, path: str, body: Object) -> Object: ...


def on_cluster(config: ClusterConfig, api: Reader, *, account: str = "") -> Iterator[Finding]:
    """What the cluster says. api: on the namespace of the RayJobs.

    account: `namespace/name` of the ServiceAccount that will launch; empty: whoever asks.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "namespace": lambda: _namespace(api),
        "kuberay": lambda: _kuberay(api),
        "operator": lambda: _operator(api),
        "rights": lambda: _rights(api, account),
        "nodes": lambda: _nodes(config, api),
        "objects": lambda: _objects(config, api),
    }
    for name, check in checks.items():
        try:
            yield from check()
        except ForbiddenError as error:
            yield Finding(name, UNKNOWN, f"not checked: no permission to {error.verb} {error.resource}")
        except RefusedError as error:
            yield Finding(name, UNKNOWN, f"not checked: {error}")
        except UnavailableError as error:
            yield Finding(name, UNKNOWN, f"not checked: the API server does not answer: {error}")
            return


def _namespace(api: Reader) -> Iterator[Finding]:
    name = api.namespace
    yield _exists(api, "namespace", name, "namespaces", f"/api/v1/namespaces/{name}", MANIFESTS)


def _kuberay(api: Reader) -> Iterator[Finding]:
    try:
        served = {resource["name"] for resource in api.read("ray.io", "/apis/ray.io/v1")["resources"]}
    except NoSuchKindError:
        served = set()
    if "rayjobs" in served:
        yield Finding("kuberay", OK, "RayJobs are known")
    else:
        yield Finding("kuberay", WRONG, "not installed: the API server knows no ray.io/v1 RayJobs", KUBERAY)


def _operator(api: Reader) -> Iterator[Finding]:
    found = api.read("deployments", "/apis/apps/v1/deployments", {"labelSelector": OPERATOR_LABEL})["items"]
    if not found:
        yield Finding("operator", UNKNOWN, "no Deployment of KubeRay's operator was found; without one, nothing starts")
        return
    names = ", ".join(f"{each['metadata']['namespace']}/{each['metadata']['name']}" for each in found)
    if any(each.get("status", {}).get("availableReplicas", 0) for each in found):
        yield Finding("operator", OK, f"{names} is available")
    else:
        first = found[0]["metadata"]
        mend = f"kubectl describe deployment {first['name']} -n {first['namespace']}"
        yield Finding("operator", WRONG, f"{names} has no running pod", mend)


def _rights(api: Reader, account: str) -> Iterator[Finding]:
    missing = []
    for group, resource, verbs in RIGHTS:
        lacking = [verb for verb in verbs if not _may(api, account, group, resource, verb)]
        missing += [f"{'/'.join(lacking)} {resource}"] if lacking else []
    who = account or "this account"
    if missing:
        text = f"{who} may not {', '.join(missing)} in {api.namespace}"
        yield Finding("rights", WRONG, text, f"{MANIFESTS} (RoleBinding, with this account as a subject)")
    else:
        yield Finding("rights", OK, f"{who} may launch in {api.namespace}")


def _may(api: Reader, account: str, group: str, resource: str, verb: str) -> bool:
    name, _, subresource = resource.partition("/")
    attributes = {"namespace": api.namespace, "group": group, "resource": name, "verb": verb}
    spec: Object = {"resourceAttributes": attributes | ({"subresource": subresource} if subresource else {})}
    kind = "SelfSubjectAccessReview"
    if account:
        namespace, _, of = account.partition("/")
        kind = "SubjectAccessReview"
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
        spec |= {"user": f"system:serviceaccount:{namespace}:{of}", "groups": groups}
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
    return bool(api.review(f"/apis/authorization.k8s.io/v1/{kind.lower()}s", body)["status"]["allowed"])


def _nodes(config: ClusterConfig, api: Reader) -> Iterator[Finding]:
    """Whether the cluster, were it empty, has room for every pod."""
    nodes = api.nodes()
    grows = any(label in node["metadata"].get("labels", {}) for node in nodes for label in GROWING)
    lacking = shortfalls(config, pools(nodes))
    for line in lacking:
        if grows:
            yield Finding("nodes", UNKNOWN, f"{line}; an autoscaler may add nodes", POOLS)
        else:
            yield Finding("nodes", WRONG, line, POOLS)
    if not lacking:
        yield Finding("nodes", OK, f"{len(nodes)}, with room for every pod")


def _objects(config: ClusterConfig, api: Reader) -> Iterator[Finding]:
    """What the profile names must be there."""
    home = f"/api/v1/namespaces/{api.namespace}"
    for name in config.secrets:
        mend = f"kubectl create secret generic {name} -n {api.namespace} --from-literal=…"
        yield _exists(api, "secret", name, "secrets", f"{home}/secrets/{name}", mend)
    for name in config.pull_secrets:
        mend = f"kubectl create secret docker-registry {name} -n {api.namespace} …"
        yield _exists(api, "secret", name, "secrets", f"{home}/secrets/{name}", mend)
    if config.service_account:
        path = f"{home}/serviceaccounts/{config.service_account}"
        yield _exists(api, "account", config.service_account, "serviceaccounts", path, MANIFESTS)
    if config.priority_class:
        path = f"/apis/scheduling.k8s.io/v1/priorityclasses/{config.priority_class}"
        yield _exists(api, "priority", config.priority_class, "priorityclasses", path, MANIFESTS)
    if config.cache_claim:
        yield _claim(config, api)
    if config.queue:
        yield _queue(config.queue, api)


def _exists(api: Reader, what: str, name: str, resource: str, path: str, mend: str) -> Finding:
    try:
        api.read(resource, path)
    except NotFoundError:
        return Finding(what, WRONG, f"{name} is not there", mend)
    except ForbiddenError:
        return Finding(what, UNKNOWN, f"{name} not checked: no permission to get {resource}")
    return Finding(what, OK, f"{name} is there")


def _claim(config: ClusterConfig, api: Reader) -> Finding:
    name = config.cache_claim
    path = f"/api/v1/namespaces/{api.namespace}/persistentvolumeclaims/{name}"
    found = _exists(api, "caches", name, "persistentvolumeclaims", path, MANIFESTS)
    if found.mark != OK:
        return found
    modes = set(api.read("persistentvolumeclaims", path)["spec"]["accessModes"])
    if config.env.replicas > 1 and "ReadWriteMany" not in modes:
        several = f"{config.env.replicas} env pods on several nodes cannot share it"
        with contextlib.suppress(ForbiddenError):
            if len(api.nodes()) == 1:
                return Finding("caches", OK, f"{name} is there, for pods of one node")
        mend = "use a claim with ReadWriteMany, or leave cluster.cache_claim empty"
        return Finding("caches", WRONG, f"{name} is {'/'.join(sorted(modes))}: {several}", mend)
    return found


def _queue(name: str, api: Reader) -> Finding:
    mend = "kubectl apply -k manifests/overlays/…-kueue"
    try:
        version = api.read("kueue.x-k8s.io", "/apis/kueue.x-k8s.io")["preferredVersion"]["groupVersion"]
    except NoSuchKindError:
        return Finding(
            "queue", WRONG, f"{name} is a queue of Kueue, which is not installed", "leave cluster.queue empty"
        )
    path = f"/apis/{version}/namespaces/{api.namespace}/localqueues/{name}"
    found = _exists(api, "queue", name, "localqueues", path, mend)
    if found.mark != OK:
        return found
    conditions = api.read("localqueues", path).get("status", {}).get("conditions", [])
    for condition in conditions:
        if condition["type"] == "Active" and condition["status"] != "True":
            return Finding("queue", WRONG, f"{name} admits nothing: {condition.get('message', '')}", mend)
    return found

"""What `kubectl kustomize` makes of manifests/: every overlay builds, and what the objects promise each other holds."""

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from gripline.kube import names
from gripline.kube.cluster_checks import RIGHTS

ROOT = Path(__file__).parents[3]
OVERLAYS = sorted(path.name for path in (ROOT / "manifests" / "overlays").iterdir())
NAMESPACES = {name: "kubeflow" if name.startswith("kubeflow") else "gripline" for name in OVERLAYS}
CLUSTER_SCOPED = ("Namespace", "PriorityClass", "ResourceFlavor", "ClusterQueue")
WORKLOADS = ("Deployment", "StatefulSet")

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
Json = dict[str, Any]


def kustomize(folder: Path) -> list[Json]:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@functools.cache
def built(overlay: str) -> list[Json]:
    return kustomize(ROOT / "manifests" / "overlays" / overlay)


def of_kind(overlay: str, *kinds: str) -> list[Json]:
    return [each for each in built(overlay) if each["kind"] in kinds]


def pod_templates(overlay: str) -> Iterator[tuple[Mapping[str, str], Json]]:
    """(labels, pod spec) of every workload."""
    for workload in of_kind(overlay, *WORKLOADS):
        template = workload["spec"]["template"]
        yield template["metadata"]["labels"], template["spec"]


def selects(selector: Json, labels: Mapping[str, str]) -> bool:
    """A label selector, as far as the manifests use it."""
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "Exists" for each in expressions)
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        each["key"] in labels for each in expressions
    )


def run_labels() -> dict[str, str]:
    """Of a pod as the launcher renders it."""
    return names.labels("my run", "rl")


def test_the_four_platforms_are_there() -> None:
    assert {"kind", "gke", "eks", "onprem"} <= set(OVERLAYS)


@every_overlay
def test_everything_lies_in_one_namespace(overlay: str) -> None:
    """Catches: an object that lands in `default`; a namespace on a cluster-wide object, which the server refuses."""
    for each in built(overlay):
        expected = "" if each["kind"] in CLUSTER_SCOPED else NAMESPACES[overlay]
        assert each["metadata"].get("namespace", "") == expected, f"{each['kind']} {each['metadata']['name']}"


@every_overlay
def test_images_are_pinned(overlay: str) -> None:
    for _, pod in pod_templates(overlay):
        for container in pod["containers"]:
            name, _, tag = container["image"].rpartition(":")
            assert name.count("/") >= 2 and re.fullmatch(r"v?\d+\.\d+[\w.-]*", tag), container["image"]


def test_the_server_is_of_the_clients_version() -> None:
    """Catches: a client that is raised alone; MLflow's database schema and API move together."""
    (pinned,) = re.findall(r"^mlflow==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    images = [container["image"] for _, pod in pod_templates("onprem") for container in pod["containers"]]
    assert f"ghcr.io/mlflow/mlflow:v{pinned}-full" in images


@every_overlay
def test_no_secret_is_contained(overlay: str) -> None:
    """Catches: a Secret, or a password in an environment variable or a ConfigMap."""
    assert not of_kind(overlay, "Secret")
    for _, pod in pod_templates(overlay):
        for container in pod["containers"]:
            for variable in container.get("env", []):
                secret = re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY", variable["name"])
                assert not secret or "secretKeyRef" in variable["valueFrom"], variable
                assert not re.search(r"://[^/$]*:[^$]*@", variable.get("value", "")), variable
    for config in of_kind(overlay, "ConfigMap"):
        assert not re.search(r"://[^/\s]*@", yaml.safe_dump(config["data"]))


def test_every_secret_is_made_by_a_documented_command() -> None:
    text = (ROOT / "docs" / "on_a_cluster.md").read_text(encoding="utf-8")
    for overlay in OVERLAYS:
        for _, pod in pod_templates(overlay):
            for container in pod["containers"]:
                named = [each["secretRef"]["name"] for each in container.get("envFrom", []) if "secretRef" in each]
                for variable in container.get("env", []):
                    reference = variable.get("valueFrom", {}).get("secretKeyRef")
                    if reference:
                        named.append(reference["name"])
                        assert f"--from-literal={reference['key']}=" in text, reference
                for name in named:
                    assert f"create secret generic {name} " in text, name


@every_overlay
def test_pods_satisfy_pod_security_restricted(overlay: str) -> None:
    """And more: nothing writes into its own image, nothing holds a token of the API server, memory has a limit."""
    for labels, pod in pod_templates(overlay):
        where = labels["app.kubernetes.io/name"]
        security = pod["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] > 0, where
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, where
        account = pod.get("serviceAccountName")
        accounts = {each["metadata"]["name"]: each for each in of_kind(overlay, "ServiceAccount")}
        assert (accounts[account] if account else pod)["automountServiceAccountToken"] is False, where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), where
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False and security["readOnlyRootFilesystem"], where
            assert security["capabilities"] == {"drop": ["ALL"]}, where
            assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"], where
        for volume in pod["volumes"]:
            assert set(volume) - {"name"} == {"emptyDir"}, where


def test_namespace_enforces_pod_security() -> None:
    (namespace,) = of_kind("onprem", "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert not of_kind("kubeflow", "Namespace"), "the namespace is Kubeflow's, and not ours to label"


@every_overlay
def test_network_policies_and_services_select_what_is_there(overlay: str) -> None:
    """Catches: a renamed label, after which a policy protects nothing and a Service reaches nobody."""
    pods = [labels for labels, _ in pod_templates(overlay)]
    for service in of_kind(overlay, "Service"):
        assert any(selects({"matchLabels": service["spec"]["selector"]}, labels) for labels in pods), service
    for policy in of_kind(overlay, "NetworkPolicy"):
        selector = policy["spec"]["podSelector"]
        assert any(selects(selector, labels) for labels in [*pods, run_labels()]), policy["metadata"]["name"]


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if not name.startswith("kubeflow")])
def test_every_service_pod_is_reached_by_those_it_serves_only(overlay: str) -> None:
    """Catches: a server without an ingress policy, which the default then denies; one that answers to everybody."""
    policies = of_kind(overlay, "NetworkPolicy")
    assert any(policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]} for policy in policies), "no default"
    for labels, pod in pod_templates(overlay):
        opened = [
            each for each in policies if each["spec"].get("ingress") and selects(each["spec"]["podSelector"], labels)
        ]
        assert len(opened) == 1, labels
        (rule,) = opened[0]["spec"]["ingress"]
        ports = {port["containerPort"] for container in pod["containers"] for port in container["ports"]}
        assert {port["port"] for port in rule["ports"]} == ports
        assert all(peer for peer in rule["from"]) and {"namespaceSelector": {}} not in rule["from"]


@every_overlay
def test_ray_pods_reach_each_other_and_their_servers(overlay: str) -> None:
    (policy,) = [each for each in of_kind(overlay, "NetworkPolicy") if each["metadata"]["name"] == "ray-pods"]
    spec = policy["spec"]
    assert selects(spec["podSelector"], run_labels()) and spec["policyTypes"] == ["Ingress", "Egress"]
    own = [{"podSelector": spec["podSelector"]}]
    assert {"from": own} in spec["ingress"] and {"to": own} in spec["egress"]
    assert {port["port"] for rule in spec["egress"] if "to" not in rule for port in rule["ports"]} == {53}
    served = {
        (peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"], rule["ports"][0]["port"])
        for rule in spec["egress"]
        for peer in rule.get("to", [])
        if "namespaceSelector" in peer
    }
    assert served == {("mlflow", 5000), ("object-store", 8333)}
    there = {labels["app.kubernetes.io/component"] for labels, _ in pod_templates("onprem")}
    assert {component for component, _ in served} <= there


@every_overlay
def test_the_launchers_role_is_what_preflight_asks_for(overlay: str) -> None:
    (role,) = [each for each in of_kind(overlay, "Role") if each["metadata"]["name"] == "gripline-launcher"]
    granted = {
        (group, resource): tuple(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert granted == {(group, resource): verbs for group, resource, verbs in RIGHTS}
    bound = {
        (subject["namespace"], subject["name"])
        for binding in of_kind(overlay, "RoleBinding")
        if binding["roleRef"]["name"] == "gripline-launcher"
        for subject in binding["subjects"]
    }
    assert bound == {(NAMESPACES[overlay], "gripline-launcher"), ("kubeflow", "pipeline-runner")}


def test_mlflow_answers_to_its_own_name() -> None:
    """Catches: a Service of another name; MLflow then answers 'Invalid Host header' to every pod."""
    (service,) = [each for each in of_kind("onprem", "Service") if each["metadata"]["name"] == "gripline-mlflow"]
    (deployment,) = of_kind("onprem", "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    variables = {each["name"]: each.get("value", "") for each in container["env"]}
    hosts = variables["MLFLOW_SERVER_ALLOWED_HOSTS"].replace("$(NAMESPACE)", NAMESPACES["onprem"]).split(",")
    name, port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
    for suffix in ("", ".gripline", ".gripline.svc", ".gripline.svc.cluster.local"):
        assert f"{name}{suffix}:{port}" in hosts
    order = [each["name"] for each in container["env"]]
    for each in container["env"]:
        for used in re.findall(r"\$\((\w+)\)", each.get("value", "")):
            assert order.index(used) < order.index(each["name"]), f"{used} is expanded only if it comes before"


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name.endswith("-kueue")])
def test_queues_lead_to_flavors_of_the_placements(overlay: str) -> None:
    """Catches: a pool that Kueue calls otherwise than the pods do: the job is never admitted."""
    from gripline.kube.placement import placement, shipped

    (local,) = of_kind(overlay, "LocalQueue")
    queues = of_kind(overlay, "ClusterQueue") or of_kind("onprem-kueue", "ClusterQueue")
    assert local["spec"]["clusterQueue"] == queues[0]["metadata"]["name"]
    allowed = queues[0]["spec"]["namespaceSelector"]["matchExpressions"][0]["values"]
    assert local["metadata"]["namespace"] in allowed
    flavors = {each["metadata"]["name"]: each.get("spec", {}) for each in of_kind(overlay, "ResourceFlavor")}
    for group in queues[0]["spec"]["resourceGroups"]:
        for flavor in group["flavors"]:
            assert [each["name"] for each in flavor["resources"]] == group["coveredResources"]
        if flavors:
            assert {flavor["name"] for flavor in group["flavors"]} == set(flavors)
    named = {
        (need.label, value) for name in shipped() for need in placement(name).node_affinity for value in need.values
    }
    for spec in flavors.values():
        assert set(spec.get("nodeLabels", {}).items()) <= named


@pytest.mark.parametrize("platform", ["gke", "eks"])
def test_a_platforms_component_fits_kubeflows_namespace(platform: str, tmp_path: Path) -> None:
    """Catches: Ray pods in Kubeflow's namespace that the network keeps from the cloud's store."""
    shutil.copytree(ROOT / "manifests", tmp_path / "manifests")
    own = {"resources": ["../manifests/overlays/kubeflow"], "components": [f"../manifests/components/{platform}"]}
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "kustomization.yaml").write_text(yaml.safe_dump(own | {"namespace": "kubeflow"}))
    objects = kustomize(tmp_path / "own")
    assert {each["metadata"]["namespace"] for each in objects} == {"kubeflow"}
    assert "ray-pods-to-cloud" in {each["metadata"]["name"] for each in objects if each["kind"] == "NetworkPolicy"}
    (account,) = [each for each in objects if each["metadata"]["name"] == "gripline-ray"]
    assert account["metadata"]["annotations"]


def documented_overlays() -> list[str]:
    text = (ROOT / "docs" / "on_a_cluster.md").read_text(encoding="utf-8")
    return [block for block in re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S) if "kind: Kustomization" in block]


def test_the_documents_overlays_build(tmp_path: Path) -> None:
    """Catches: an example that fails when it is copied."""
    examples = documented_overlays()
    assert examples
    shutil.copytree(ROOT / "manifests", tmp_path / "gripline" / "manifests")
    for number, example in enumerate(examples):
        own = tmp_path / f"own-{number}"
        own.mkdir()
        (own / "kustomization.yaml").write_text(example)
        assert kustomize(own)
        assert "YOUR-" not in yaml.safe_dump_all(kustomize(own)), "what the example is there to fill in"

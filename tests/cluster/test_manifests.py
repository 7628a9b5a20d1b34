"""manifests/ on a real API server: every object is accepted, its pods are admitted, and the Role is exactly enough."""

import ast
import json
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from cluster.kube import Json, Kube
from cluster.site import ACCOUNT, Site, World, eventually

from gripline.cluster_config import ClusterConfig
from gripline.kube.api import ApiError, Cluster, ForbiddenError, KubeApi, connect
from gripline.kube.cluster_checks import RIGHTS, on_cluster

ROOT = Path(__file__).parents[2]
OVERLAYS = sorted(path.name for path in (ROOT / "manifests" / "overlays").iterdir())
VERBS = [(resource, verb) for _, resource, verbs in RIGHTS for verb in verbs]
NOT_THE_LAUNCHERS = ("api.py", "reap.py", "cluster_checks.py")
"""Modules of gripline/kube whose calls people make, with rights of their own."""

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed"),
]


def kubectl(kubeconfig: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = ["kubectl", "--kubeconfig", str(kubeconfig), *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=110)


def built(overlay: str) -> list[Json]:
    folder = ROOT / "manifests" / "overlays" / overlay
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture
def installed(kube: Kube, kubeconfig: Path) -> Iterator[None]:
    """The overlay for small clusters, applied as a user applies it. Not where somebody has it already."""
    if kube.get("/api/v1/namespaces/gripline") is not None:
        pytest.skip("there is a namespace gripline, which is not ours to replace")
    folder = str(ROOT / "manifests" / "overlays" / "kind")
    done = kubectl(kubeconfig, "apply", "-k", folder)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    yield
    kubectl(kubeconfig, "delete", "-k", folder, "--timeout=60s")


def test_the_services_pods_are_admitted(kube: Kube, installed: None) -> None:
    """Under `restricted`, with their accounts and priorities. Catches: a Deployment that stays without pods."""
    workloads = {each["metadata"]["name"] for each in built("kind") if each["kind"] in ("Deployment", "StatefulSet")}

    def named() -> set[str]:
        pods = kube.items("/api/v1/namespaces/gripline/pods")
        return {pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in pods}

    def told() -> str:
        events = kube.items("/api/v1/namespaces/gripline/events")
        return "\n".join(event["message"] for event in events)

    eventually(lambda: named() == workloads, "pod of every workload", context=told)


@pytest.fixture(scope="module")
def namespaces(kube: Kube) -> Iterator[None]:
    """`gripline`, as the manifests have it, and `kubeflow`. Those that exist already are left as they are."""
    own = next(each for each in built("kind") if each["kind"] == "Namespace")
    made = []
    for namespace in (own, {"metadata": {"name": "kubeflow"}}):
        name = namespace["metadata"]["name"]
        if kube.get(f"/api/v1/namespaces/{name}") is None:
            kube.create("/api/v1/namespaces", namespace)
            made.append(name)
    yield
    for name in made:
        kube.delete(f"/api/v1/namespaces/{name}")
    eventually(lambda: all(kube.get(f"/api/v1/namespaces/{name}") is None for name in made), "end of the namespaces")


def is_served(kube: Kube, api_version: str) -> bool:
    return api_version == "v1" or kube.get(f"/apis/{api_version}") is not None


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_api_server_accepts_every_object(kube: Kube, kubeconfig: Path, overlay: str) -> None:
    """Catches: a misspelt field, a value that is out of range, a pod that `restricted` warns of."""
    objects = built(overlay)
    known = [each for each in objects if is_served(kube, each["apiVersion"])]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": known})
    options = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-")
    done = kubectl(kubeconfig, *options, text=text)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    assert len(done.stdout.splitlines()) == len(known)
    unknown = sorted({each["apiVersion"] for each in objects if each not in known})
    if unknown:
        pytest.skip(
            f"{len(known)} objects are accepted; not tried, as the cluster does not know it: {', '.join(unknown)}"
        )


# --- the launcher's rights

CALLS: dict[str, Callable[[KubeApi], object]] = {
    "rayjob": lambda api: api.rayjob("none"),
    "create_rayjob": lambda api: api.create_rayjob({"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {}}),
    "patch_rayjob": lambda api: api.patch_rayjob("none", {}),
    "delete_rayjob": lambda api: api.delete_rayjob("none"),
    "pod": lambda api: api.pod("none"),
    "pods": lambda api: api.pods("gripline.io/none"),
    "warnings": lambda api: api.warnings(),
    "follow_log": lambda api: list(api.follow_log("none", "driver-log", "")),
}
"""Each call of the launcher, on something that is not there: the right to it is asked for first."""


REAPERS_CALLS: dict[str, Callable[[KubeApi], object]] = {
    "rayjobs": lambda api: api.rayjobs("gripline.io/none"),
    "rayclusters": lambda api: api.rayclusters("gripline.io/none"),
    "delete_rayjob": lambda api: api.delete_rayjob("none"),
    "delete_raycluster": lambda api: api.delete_raycluster("none"),
    "workflow": lambda api: api.workflow("none"),
    "pod": lambda api: api.pod("none"),
}


def calls_in(paths: Iterable[Path]) -> set[str]:
    """Methods of the API that these modules use."""
    calls = {name for name in vars(Cluster) if not name.startswith("_") and callable(getattr(Cluster, name))}
    used: set[str] = set()
    for path in paths:
        nodes = ast.walk(ast.parse(path.read_text()))
        attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
        used |= {node.attr for node in attributes if "cluster" in ast.unparse(node.value)}
    return used & calls - {"within"}


def test_every_call_is_tried_here() -> None:
    """Catches: a new call for which the Role may have no right."""
    modules = set((ROOT / "gripline" / "kube").glob("*.py"))
    apart = {ROOT / "gripline" / "kube" / name for name in NOT_THE_LAUNCHERS}
    assert calls_in(modules - apart) == set(CALLS)
    assert calls_in([ROOT / "gripline" / "kube" / "reap.py"]) == set(REAPERS_CALLS)


@pytest.fixture
def ground(kube: Kube, tmp_path: Path) -> Iterator[Site]:
    """A namespace with the launcher's account and rights, in which nothing runs."""
    made = Site(World(kube, heads=None, operator=None, operator_is_real=False), tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def api(ground: Site, monkeypatch: pytest.MonkeyPatch) -> KubeApi:
    """The real API with the ServiceAccount's own token."""
    monkeypatch.setenv("KUBECONFIG", str(ground.kubeconfig))
    return connect(ground.namespace)


def refused(api: KubeApi, calls: Mapping[str, Callable[[KubeApi], object]] = CALLS) -> dict[str, tuple[str, str]]:
    """Call → (verb, resource) that it lacks the right to."""
    found = {}
    for name, call in calls.items():
        try:
            call(api)
        except ForbiddenError as error:
            found[name] = (error.resource, error.verb)
        except ApiError:
            continue  # there is nothing of that name, which is told to those with the right only
    return found


def test_the_role_is_sufficient(api: KubeApi) -> None:
    assert refused(api) == {}
    (rights,) = [each for each in on_cluster(ClusterConfig(), api) if each.name == "rights"]
    assert rights.mark == "✓", rights.line


@pytest.mark.parametrize(("resource", "verb"), VERBS, ids=[f"{verb} {resource}" for resource, verb in VERBS])
def test_no_verb_of_the_role_can_be_left_out(ground: Site, api: KubeApi, resource: str, verb: str) -> None:
    """And preflight tells which one is missing."""
    assert refused(api) == {}
    ground.without_right(resource, verb)
    eventually(lambda: refused(api), f"call that needs {verb} {resource}", timeout_s=10)
    assert set(refused(api).values()) == {(resource, verb)}
    (rights,) = [each for each in on_cluster(ClusterConfig(), api) if each.name == "rights"]
    assert rights.mark == "✗" and f"may not {verb} {resource} in {ground.namespace}" in rights.line


@pytest.mark.parametrize(
    ("resource", "verb"), [("rayjobs", "get"), ("pods", "list"), ("pods/log", "get"), ("events", "list")]
)
def test_the_launcher_tells_which_right_it_lacks(site: Site, resource: str, verb: str) -> None:
    """One line, exit 2. Catches: a launcher that waits for ever, or goes on without a log."""
    site.without_right(resource, verb)
    step = site.launch([["wait", 60]])
    assert step.wait(60) == 2, step.log
    assert f"no permission to {verb} {resource}" in step.log


def test_the_account_may_do_nothing_elsewhere(api: KubeApi) -> None:
    elsewhere = api.within("default")
    assert set(refused(elsewhere)) == set(CALLS)
    for path in ("/api/v1/nodes", f"/api/v1/namespaces/{api.namespace}/secrets", "/api/v1/namespaces"):
        with pytest.raises(ForbiddenError):
            api.read(path.rpartition("/")[2], path)


def test_preflight_of_a_person_and_of_a_step(ground: Site, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the administrator is told, and what the step's own account can find out."""
    config = ClusterConfig.model_validate({"stages": ["rl"], "secrets": ["store"], "priority_class": "none"})

    def marks(path: Path, account: str = "") -> dict[str, str]:
        monkeypatch.setenv("KUBECONFIG", str(path))
        return {each.name: each.mark for each in on_cluster(config, connect(ground.namespace), account=account)}

    person = marks(kubeconfig, f"{ground.namespace}/{ACCOUNT}")
    expected = {"namespace": "✓", "kuberay": "✓", "rights": "✓", "nodes": "✓", "secret": "✗", "priority": "✗"}
    assert person == expected | {"operator": "–"}, "the operator of the test cluster is no Deployment"
    step = marks(ground.kubeconfig)
    assert step == {"kuberay": "✓", "rights": "✓"} | dict.fromkeys(
        ("namespace", "operator", "nodes", "secret", "priority"), "–"
    )
    assert marks(kubeconfig, "default/default")["rights"] == "✗"


def test_the_reapers_role_is_exactly_enough(ground: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the token of an account that has this Role alone."""
    path = ROOT / "manifests" / "base" / "runs" / "people.yaml"
    (role,) = yaml.safe_load_all(path.read_text())
    ground.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reaper"}})
    binding: Json = {"apiVersion": role["apiVersion"], "kind": "RoleBinding", "metadata": {"name": "reaper"}}
    binding["roleRef"] = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role["metadata"]["name"]}
    ground.apply(binding | {"subjects": [{"kind": "ServiceAccount", "name": "reaper"}]})
    account = f"/api/v1/namespaces/{ground.namespace}/serviceaccounts/reaper/token"
    token = ground.kube.create(account, {"spec": {}})["status"]["token"]
    monkeypatch.setenv("KUBECONFIG", str(ground.kube.kubeconfig(tmp_path / "reaper", ground.namespace, token=token)))
    api = connect(ground.namespace)
    ground.apply(role)
    eventually(lambda: refused(api, REAPERS_CALLS) == {}, "the reaper's rights", timeout_s=10)
    for rule in role["rules"]:
        for resource in rule["resources"]:
            for verb in rule["verbs"]:
                rest = {"resources": [resource], "verbs": [each for each in rule["verbs"] if each != verb]}
                others = {"resources": [each for each in rule["resources"] if each != resource], "verbs": rule["verbs"]}
                kept = [rule | part for part in (rest, others) if part["resources"] and part["verbs"]]
                ground.apply(role | {"rules": [each for each in role["rules"] if each is not rule] + kept})
                missing = {(resource, verb)}
                eventually(
                    lambda missing=missing: set(refused(api, REAPERS_CALLS).values()) == missing,
                    f"call that needs {verb} {resource}",
                    timeout_s=10,
                )

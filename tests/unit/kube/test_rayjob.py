"""The RayJob of a stage: goldens, and what they mean to Ray, KubeRay and Kubernetes.

After an intended change, `python tests/unit/kube/test_rayjob.py` writes the goldens anew; read their diff.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from gripline.cluster_config import ClusterConfig
from gripline.errors import UserError
from gripline.kube import names, pod_rules, pods
from gripline.kube.placement import fit_for
from gripline.kube.rayjob import RAY_VERSION, Job, render, with_images

Json = dict[str, Any]

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[3]
POLICY, ENV = "gripline-policy:1", "gripline-env-mujoco:1"
RUN_DIR = "s3://bucket/runs/laptop-3"
OWNER = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "run-x7b2", "uid": "0c6ee2f5"}


def make_job(
    job: str = "rl",
    *,
    run_dir: str = RUN_DIR,
    variables: Mapping[str, str] | None = None,
    owner: Mapping[str, str] | None = None,
    **fields: Any,
) -> Job:
    """fields: of `cluster`; sections are merged with those of a valid one."""
    body: Json = {"stages": ["rl"], "head": {"image": POLICY}, "policy": {"image": POLICY}, "env": {"image": ENV}}
    for key, value in fields.items():
        body[key] = body[key] | value if isinstance(value, dict) else value
    return Job("laptop-3", run_dir, job, ClusterConfig.model_validate(body), variables or {}, owner)


CASES = {
    "cpu": make_job(),
    "gke-egl": make_job(
        variables={"MLFLOW_TRACKING_URI": "http://mlflow:5000"},
        policy={"placement": "gke-h100", "gpus": 8, "learner_gpus": 4.0, "servers_per_pod": 4, "memory_gb": 256.0},
        env={"placement": "gke-l4", "gpus": 1, "rendering": "egl", "replicas": 16, "workers_per_pod": 2, "cpus": 3.5},
        secrets=["gripline-store", "gripline-mlflow"],
        pull_secrets=["registry"],
        pull_policy="Always",
    ),
    "onprem-rtx-kueue": make_job(
        owner=OWNER,
        policy={"placement": "onprem-train", "gpus": 2},
        env={
            "placement": "onprem-rt",
            "gpus": 1,
            "rendering": "rtx",
            "image": "gripline-env-isaac:1",
            "memory_gb": 48.0,
            "container_env": {"ACCEPT_EULA": "Y", "OMNI_KIT_ACCEPT_EULA": "YES"},
        },
        namespace="gripline",
        service_account="ray",
        cache_claim="gripline-caches",
        queue="gripline",
        priority_class="gripline-low",
        run_as_user=1234,
    ),
    "sft": make_job("sft", policy={"placement": "onprem-train", "gpus": 1}),
}


def as_text(manifest: Json) -> str:
    return yaml.safe_dump(manifest, sort_keys=False)


def groups_of(manifest: Json) -> dict[str, Json]:
    """The head's and the worker groups, by name."""
    cluster = manifest["spec"]["rayClusterSpec"]
    workers = {group["groupName"]: group for group in cluster.get("workerGroupSpecs", [])}
    return {"head": cluster["headGroupSpec"], **workers}


def ray_of(group: Json) -> Json:
    container: Json = group["template"]["spec"]["containers"][0]
    return container


def variables_of(group: Json) -> dict[str, str]:
    return {each["name"]: each["value"] for each in ray_of(group)["env"] if "value" in each}


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    """Catches: a change of what is asked of a cluster that nobody meant."""
    assert as_text(render(CASES[case])) == (GOLDEN / f"{case}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_a_manifest_is_plain_data_without_shared_parts(case: str) -> None:
    """Catches: a launcher that changes one container and thereby others; YAML with anchors."""
    manifest = render(CASES[case])
    assert json.loads(json.dumps(manifest)) == manifest
    assert "&id" not in as_text(manifest)


def test_the_drivers_pod_has_no_gpu_and_takes_no_actors() -> None:
    head = groups_of(render(CASES["gke-egl"]))["head"]
    assert head["rayStartParams"]["num-cpus"] == "0" and head["rayStartParams"]["num-gpus"] == "0"
    assert "resources" not in head["rayStartParams"]
    assert set(ray_of(head)["resources"]["limits"]) == {"cpu", "memory"}
    assert variables_of(head)["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_ray_reads_the_custom_resources_from_the_shell_command() -> None:
    """Catches: quotes that the shell takes away. KubeRay puts the parameters into `bash -c` as they are."""
    groups = groups_of(render(CASES["gke-egl"]))
    told = {}
    for name in ("policy", "env"):
        (word,) = shlex.split(f"--resources={groups[name]['rayStartParams']['resources']}")
        told[name] = json.loads(word.removeprefix("--resources="))
        # what KubeRay itself makes of it, to add accelerators
        assert json.loads(groups[name]["rayStartParams"]["resources"].strip("'\"` ")) == told[name]
    assert told == {"policy": {"learner": 1, "policy": 4}, "env": {"env": 2}}


def test_gpus_are_stated_where_kuberay_would_not_count_them() -> None:
    """Catches: a MIG slice that Ray does not know of, since its resource does not end in 'gpu'."""
    slice_ = {"name": "slices", "gpu_resource": "nvidia.com/mig-1g.24gb"}
    policy = groups_of(render(make_job(policy={"placement": slice_, "gpus": 1})))["policy"]
    assert ray_of(policy)["resources"]["limits"]["nvidia.com/mig-1g.24gb"] == "1"
    assert policy["rayStartParams"]["num-gpus"] == "1"


def test_rays_object_store_fits_into_shared_memory() -> None:
    """Catches: a store larger than /dev/shm, which Ray puts into files on the disk instead."""
    head = groups_of(render(make_job(head={"shm_gb": 0.5})))["head"]
    shm = {volume["name"]: volume for volume in head["template"]["spec"]["volumes"]}["shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "512Mi"}
    assert 0.8 * 512 * 2**20 < int(head["rayStartParams"]["object-store-memory"]) < 512 * 2**20


def test_sft_is_one_pod_of_the_policy_group() -> None:
    """Catches: SFT in a head without a GPU, while pods with GPUs stand idle."""
    groups = groups_of(render(CASES["sft"]))
    assert set(groups) == {"head"}
    assert ray_of(groups["head"])["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert groups["head"]["rayStartParams"]["num-gpus"] == "1"
    assert groups["head"]["template"]["metadata"]["labels"][names.ROLE_LABEL] == "policy"


def test_the_drivers_log_has_a_container_that_outlives_ray() -> None:
    spec = groups_of(render(CASES["cpu"]))["head"]["template"]["spec"]
    (log,) = spec["initContainers"]
    assert (log["name"], log["restartPolicy"]) == (names.LOG_CONTAINER, "Always")
    shared = {mount["mountPath"]: mount["name"] for mount in ray_of({"template": {"spec": spec}})["volumeMounts"]}
    assert [(mount["mountPath"], mount["name"]) for mount in log["volumeMounts"]] == [("/tmp", shared["/tmp"])]
    assert spec["restartPolicy"] == "Never"


@pytest.mark.parametrize("case", CASES)
def test_what_kuberay_adds_passes_restricted_too(case: str) -> None:
    """KubeRay 1.7 gives workers an init container with the first container's security context, env and mounts."""
    for group in groups_of(render(CASES[case])).values():
        template = json.loads(json.dumps(group["template"]))
        ray = template["spec"]["containers"][0]
        wait = {key: ray[key] for key in ("image", "imagePullPolicy", "securityContext", "env", "volumeMounts")}
        amounts = {"cpu": "200m", "memory": "256Mi"}
        wait |= {"name": "wait-gcs-ready", "resources": {"requests": amounts, "limits": amounts}}
        template["spec"].setdefault("initContainers", []).append(wait)
        assert not list(pod_rules.refusals(template))


@pytest.mark.parametrize("case", CASES)
def test_every_pod_can_be_found_and_writes_where_it_may(case: str) -> None:
    for group in groups_of(render(CASES[case])).values():
        labels = group["template"]["metadata"]["labels"]
        assert (labels[names.RUN_LABEL], labels[names.JOB_LABEL]) == ("laptop-3", CASES[case].job)
        writable = {mount["mountPath"] for mount in ray_of(group)["volumeMounts"]}
        assert {"/tmp", "/cache", "/dev/shm", variables_of(group)["HOME"]} <= writable
        assert ray_of(group)["workingDir"] in writable


def test_env_pods_share_a_claim_but_no_folder() -> None:
    """Catches: two simulators that write one cache. The replica's number is KubeRay's, and unique in its group."""
    groups = groups_of(render(CASES["onprem-rtx-kueue"]))
    mounts = [mount for mount in ray_of(groups["env"])["volumeMounts"] if mount["name"] == "cache"]
    name = names.rayjob_name(RUN_DIR, "laptop-3", "rl")
    assert len(mounts) == 5
    assert all(mount["subPathExpr"].startswith(f"{name}/$({pods.REPLICA_VARIABLE})") for mount in mounts)
    assert len({mount["subPathExpr"] for mount in mounts}) == len(mounts)
    (number,) = [each for each in ray_of(groups["env"])["env"] if each["name"] == pods.REPLICA_VARIABLE]
    assert number["valueFrom"]["fieldRef"]["fieldPath"] == f"metadata.labels['{pods.REPLICA_LABEL}']"
    claims = {
        name: "persistentVolumeClaim" in str(group["template"]["spec"]["volumes"]) for name, group in groups.items()
    }
    assert claims == {"head": False, "policy": False, "env": True}


def test_the_users_variables_win_over_the_placements_and_those_over_ours() -> None:
    placement = {"name": "mine", "container_env": {"MUJOCO_GL": "osmesa", "OMP_NUM_THREADS": "2"}}
    env = {"placement": placement, "container_env": {"OMP_NUM_THREADS": "3"}}
    variables = variables_of(groups_of(render(make_job(env=env)))["env"])
    assert (variables["MUJOCO_GL"], variables["OMP_NUM_THREADS"]) == ("osmesa", "3")


def test_only_env_pods_draw() -> None:
    groups = groups_of(render(CASES["cpu"]))
    assert {name: "MUJOCO_GL" in variables_of(group) for name, group in groups.items()} == {
        "head": False,
        "policy": False,
        "env": True,
    }


@pytest.mark.parametrize("run_dir", ["/runs/my run", "s3://b/it's", "/runs/$(HOME)/a;b", '/runs/"x"'])
def test_the_entrypoint_survives_the_shell(run_dir: str) -> None:
    """Ray runs it with `sh -c`."""
    entrypoint = render(make_job(run_dir=run_dir))["spec"]["entrypoint"]
    assert shlex.split(entrypoint) == ["python", "-m", "gripline.kube.driver", run_dir, "rl"]


def test_the_hash_tells_specs_apart_and_launches_not() -> None:
    """Catches: a second launcher that does not adopt, or one that adopts another's image."""

    def spec_hash_of(job: Job) -> str:
        found: str = render(job)["metadata"]["annotations"][names.SPEC_HASH_ANNOTATION]
        return found

    first = spec_hash_of(make_job())
    assert first == spec_hash_of(make_job(owner=OWNER, variables={"MLFLOW_RUN_ID": "1", "KFP_MLFLOW_CONFIG": "{}"}))
    changes: list[Json] = [
        {"env": {"image": "other:1"}},
        {"env": {"replicas": 3}},
        {"policy": {"placement": "onprem-train"}},
        {"secrets": ["store"]},
        {"variables": {"MLFLOW_TRACKING_URI": "http://mlflow"}},
        {"retries": 3},
    ]
    assert len({first, *(spec_hash_of(make_job(**change)) for change in changes)}) == len(changes) + 1


@pytest.mark.parametrize("placement", sorted({*fit_for("egl"), *fit_for("policy")}))
def test_every_shipped_placement_is_accepted_where_it_is_fit(placement: str) -> None:
    """Catches: a placement with a label, taint or variable that the rules refuse."""
    if placement in fit_for("egl"):
        render(make_job(env={"placement": placement, "gpus": 1, "rendering": "egl"}))
    if placement in fit_for("policy"):
        render(make_job(policy={"placement": placement, "gpus": 1}))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"env": {"placement": "onprem-train", "gpus": 1, "rendering": "rtx"}}, "onprem-train"),
        ({"env": {"placement": "onprem-rr"}}, "did you mean 'onprem-rt'?"),
        ({"policy": {"gpus": 1}}, "gpu_resource"),
        ({"policy": {"placement": "onprem-shared", "gpus": 1}}, "onprem-shared"),
    ],
)
def test_a_placement_that_cannot_work_is_refused(fields: Json, told: str) -> None:
    with pytest.raises(UserError) as refused:
        render(make_job(**fields))
    assert told in refused.value.line and "cluster." in refused.value.line


def test_images_that_are_left_out_are_filled_in() -> None:
    filled = with_images(ClusterConfig.model_validate({"env": {"image": ENV}}), "gripline-step:1")
    assert (filled.head.image, filled.policy.image, filled.env.image) == ("gripline-step:1", "gripline-step:1", ENV)


@pytest.mark.parametrize(("cpus", "quantity"), [(2.0, "2"), (0.5, "500m"), (0.1 + 0.2, "300m"), (1.25, "1250m")])
def test_cpu_quantity(cpus: float, quantity: str) -> None:
    assert pods.cpu_quantity(cpus) == quantity


@pytest.mark.parametrize(("gib", "quantity"), [(4.0, "4Gi"), (0.5, "512Mi"), (1.1, "1126Mi"), (2048.0, "2048Gi")])
def test_memory_quantity(gib: float, quantity: str) -> None:
    assert pods.memory_quantity(gib) == quantity


def test_ray_is_the_one_in_the_images() -> None:
    """Catches: an upgrade of Ray that leaves KubeRay with the old number."""
    assert f"ray=={RAY_VERSION}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    for name_, case_ in CASES.items():
        (GOLDEN / f"{name_}.yaml").write_text(as_text(render(case_)), encoding="utf-8")

"""Placements: the shipped ones are right; a wrong use of one is one line that names place, field and what works."""

import re
import tomllib
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from catalogue import CATALOGUE, GFD, GKE, INSTANCE, KARPENTER
from hypothesis import given
from hypothesis import strategies as st
from setuptools import find_packages

from gripline.cluster_config import ClusterConfig, Placement
from gripline.errors import UserError
from gripline.kube.placement import (
    check_env,
    check_placements,
    check_policy,
    check_selectors,
    fit_for,
    placement,
    shipped,
)
from gripline.kube.pools import misfit, pools
from gripline.kube.products import USES, gpu_named

ROOT = Path(__file__).parents[3]
ALL = sorted(shipped())
WITH_GPU = [name for name in ALL if shipped()[name].gpu_resource]
POOLS = pools(CATALOGUE.values())


def own(*requirements: tuple[str, list[str]], **fields: Any) -> Placement:
    """A placement of one's own; it asks for nvidia.com/gpu unless told otherwise."""
    affinity = [{"label": label, "values": values} for label, values in requirements]
    return Placement.model_validate(
        {"name": "mine", "node_affinity": affinity, "gpu_resource": "nvidia.com/gpu"} | fields
    )


def refusal(check: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as refused:
        check(*arguments, **options)
    assert "\n" not in refused.value.line and refused.value.next_step
    return refused.value.line


def test_shipped_placements_are_those_of_the_files() -> None:
    """Catches: a file whose name is not its placement's, which then could not be found by it."""
    folder = ROOT / "gripline" / "kube" / "placements"
    assert sorted(path.stem for path in folder.glob("*.yaml")) == ALL
    assert {"cpu", "gke-l4", "eks-karpenter-rt", "eks-train", "aks-a10", "onprem-rt", "onprem-train"} <= set(ALL)


def test_data_files_are_installed_with_the_package() -> None:
    """Catches: YAML files in a folder that is no package, which only a clone would have."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = find_packages(str(ROOT), include=settings["packages"]["find"]["include"])
    patterns = settings["package-data"]["*"]
    for package, name in (("gripline.kube", "products.yaml"), ("gripline.kube.placements", "cpu.yaml")):
        assert package in packages
        assert (files(package) / name).is_file() and any(fnmatch(name, pattern) for pattern in patterns)


def test_the_document_lists_every_shipped_placement_with_its_uses() -> None:
    """Catches: a placement that nobody finds, a table that promises more than is allowed."""
    text = (ROOT / "docs" / "placements.md").read_text(encoding="utf-8")
    table = text.partition("## Shipped")[2].partition("## Your own")[0]
    rows = {line.partition(" |")[0]: line for line in table.splitlines() if line.startswith("| `")}
    assert {name for names in rows for name in re.findall(r"`([\w-]+)`", names)} == set(ALL)
    for names, row in rows.items():
        uses = row.rsplit("|", 2)[1].strip()
        for name in re.findall(r"`([\w-]+)`", names):
            if name != "cpu" and uses != "as above":
                assert [use for use in USES if name in fit_for(use)] == uses.split(", "), name


@pytest.mark.parametrize("name", ALL)
def test_shipped_placement_is_sound(name: str) -> None:
    """Catches: a misspelt product, a selector that no node satisfies, a GPU pool without a toleration for its taint."""
    found = placement(name)
    assert found.description
    check_selectors(found, where=name)
    known = [gpu_named(each.label, value) for each in found.node_affinity for value in each.values]
    assert all(gpu is not None and gpu.product for gpu in known)
    assert bool(found.gpu_resource) == bool(found.node_affinity) == (name != "cpu")
    if name != "cpu":
        assert "nvidia.com/gpu" in [toleration.key for toleration in found.tolerations]
        assert found.runtime_class == ""


@pytest.mark.parametrize("name", ALL)
def test_shipped_placement_fits_a_node(name: str) -> None:
    """Catches: a placement that fits no node of the kind that it is named for."""
    assert [pool for pool in POOLS if not misfit(pool, placement(name))]


@pytest.mark.parametrize("name", WITH_GPU)
def test_shipped_placement_is_for_one_kind_of_use(name: str) -> None:
    """Catches: H100s among the nodes for simulators, shared GPUs among those for the policy."""
    check_env(placement(name), "egl", gpus=1, where=name)
    if name in fit_for("rtx"):
        check_env(placement(name), "rtx", gpus=1, where=name)
    else:
        assert "what works: L4, " in refusal(check_env, placement(name), "rtx", gpus=1, where=name)
    if name in fit_for("policy"):
        check_policy(placement(name), gpus=8, where=name)
    else:
        assert "what works: placements aks-a10, " in refusal(check_policy, placement(name), gpus=1, where=name)
    assert (name in fit_for("rtx")) == (name.endswith(("-rt", "-l4", "-a10", "-6000")))
    assert (name in fit_for("policy")) == (name != "onprem-shared")


def test_unknown_name_is_told_with_the_nearest() -> None:
    assert "no placement is called 'gke-l40'; did you mean 'gke-l4'" in refusal(placement, "gke-l40")
    assert refusal(placement, "x", where="cluster.env.placement").startswith("cluster.env.placement: ")
    assert placement(mine := own()) is mine


@pytest.mark.parametrize(
    "value",
    [
        "NVIDIA-A100-SXM4-80GB",
        "NVIDIA-H100-80GB-HBM3",
        "NVIDIA-H200",
        "NVIDIA-B200",
        "NVIDIA-A30",
        "NVIDIA-L40S-SHARED",
        "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb",
        "NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition-MIG-1g.24gb.gfx",
        "NVIDIA-L40S-12Q",
    ],
)
def test_gpu_that_cannot_ray_trace_is_refused_with_those_that_can(value: str) -> None:
    """Catches: Isaac Sim that starts on an H100 after twenty minutes of pulling its image."""
    line = refusal(check_env, own((GFD, ["NVIDIA-L40S", value])), "rtx", gpus=1, where="my-pool.yaml")
    assert line.startswith(f"my-pool.yaml: node_affinity[0].values: {value}")
    assert "L40S, " in line and "RTX PRO 6000" in line and "gke-l4" in line and "onprem-train" not in line


SHARING = "cloud.google.com/gke-gpu-sharing-strategy"
PARTITION = "cloud.google.com/gke-gpu-partition-size"


@pytest.mark.parametrize(
    ("mine", "rendering", "gpus", "told"),
    [
        (own((KARPENTER, ["h100"])), "rtx", 1, "node_affinity[0].values: h100 has no RT cores"),
        (own((INSTANCE, ["g6e.xlarge", "p5.48xlarge"])), "rtx", 1, "p5.48xlarge (H100) has no RT cores"),
        (own((INSTANCE, ["Standard_NV12ads_A10_v5"])), "rtx", 1, "Standard_NV12ads_A10_v5 is a part of a GPU"),
        (own((GKE, ["nvidia-l4"]), (SHARING, ["time-sharing"])), "rtx", 1, "node_affinity[1].values: time-sharing is"),
        (own((GFD, ["NVIDIA-L4"]), gpu_resource="nvidia.com/gpu.shared"), "rtx", 1, "gpu_resource: nvidia.com/gpu.sha"),
        (own((GFD, ["NVIDIA-RTX-A6000"]), gpu_resource="nvidia.com/mig-1g.24gb.gfx"), "rtx", 1, "is a MIG slice"),
        (own(), "rtx", 1, "node_affinity: names no GPU"),
        (own(("pool", ["rt"])), "rtx", 1, "say rt_cores: true in the placement"),
        (own((GFD, ["NVIDIA-RTX-9999"])), "rtx", 1, "'NVIDIA-RTX-9999' is in no list of ours"),
        (own((INSTANCE, ["g6e.xlarge", "m5.large"])), "rtx", 1, "node_affinity: names no GPU"),
        (
            own((GFD, ["NVIDIA-L4"]), gpu_resource=""),
            "rtx",
            1,
            "gpu_resource: is empty, but gpus is 1",
        ),
        (
            own((GFD, ["NVIDIA-L4"]), gpu_resource=""),
            "cpu",
            2,
            "gpu_resource: is empty, but gpus is 2",
        ),
        (own((GFD, ["NVIDIA-L4"]), gpu_resource=""), "egl", 0, "gpu_resource: is empty, but gpus is 1"),
        (own((GFD, ["NVIDIA-H200-MIG-1g.18gb"])), "egl", 1, "is a MIG slice without graphics (EGL)"),
        (own((GKE, ["nvidia-h100-80gb"]), (PARTITION, ["1g.10gb"])), "egl", 1, "node_affinity[1].values: 1g.10gb is"),
        (own(gpu_resource="nvidia.com/mig-1g.10gb"), "egl", 1, "gpu_resource: nvidia.com/mig-1g.10gb is a MIG slice"),
        (own((INSTANCE, ["Standard_ND96isr_MI300X_v5"]), gpu_resource="amd.com/gpu"), "egl", 1, "has no graphics"),
        (own((GFD, ["NVIDIA-L4-SHARED"])), "egl", 2, "2 gpus of a pod would be a time-shared GPU"),
        (own(gpu_resource="nvidia.com/mig-1g.24gb.gfx"), "egl", 2, "2 gpus of a pod would be MIG slices"),
        (own(gpu_resource="nvidia.com/mig-1g24gb"), "egl", 1, "'nvidia.com/mig-1g24gb' is no MIG resource; such as"),
    ],
)
def test_wrong_place_for_a_simulator(mine: Placement, rendering: str, gpus: int, told: str) -> None:
    line = refusal(check_env, mine, rendering, gpus=gpus, where="here")
    assert line.startswith("here: ") and told in line


@pytest.mark.parametrize(
    ("mine", "rendering", "gpus"),
    [
        (own((GFD, ["NVIDIA-L40S", "NVIDIA-L4"])), "rtx", 4),
        (own((GKE, ["nvidia-rtx-pro-6000"])), "rtx", 1),
        (own((INSTANCE, ["new.xlarge"]), (GFD, ["NVIDIA-L40S"])), "rtx", 1),
        (own(("pool", ["rt"]), rt_cores=True), "rtx", 1),
        (own((GFD, ["NVIDIA-RTX-9999"]), rt_cores=True), "rtx", 1),
        (own((GFD, ["NVIDIA-L4"]), ("nvidia.com/gpu.sharing-strategy", ["none"])), "rtx", 1),
        (own((GFD, ["NVIDIA-H200"])), "egl", 1),
        (own((GFD, ["NVIDIA-L4-SHARED"])), "egl", 1),
        (own((GKE, ["nvidia-rtx-pro-6000"]), (PARTITION, ["1g.24gb.gfx"])), "egl", 1),
        (own((GFD, ["NVIDIA-H200-MIG-1g.18gb"])), "cpu", 0),
        (own(gpu_resource=""), "cpu", 0),
    ],
)
def test_right_place_for_a_simulator(mine: Placement, rendering: str, gpus: int) -> None:
    check_env(mine, rendering, gpus=gpus, where="here")


def test_your_word_does_not_move_what_is_known() -> None:
    """Catches: `rt_cores: true` that talks an H100 into ray tracing."""
    line = refusal(check_env, own((GFD, ["NVIDIA-H100-NVL"]), rt_cores=True), "rtx", gpus=1, where="here")
    assert "NVIDIA-H100-NVL has no RT cores" in line


def test_policy_keeps_its_memory() -> None:
    assert "is time-shared" in refusal(check_policy, own((GFD, ["NVIDIA-L40S-SHARED"])), gpus=1, where="here")
    shared = own(gpu_resource="nvidia.com/gpu.shared")
    assert "gpu_resource: nvidia.com/gpu.shared is time-shared" in refusal(check_policy, shared, gpus=1, where="here")
    sliced = own((GFD, ["NVIDIA-A100-SXM4-80GB"]), gpu_resource="nvidia.com/mig-3g.40gb")
    assert "set gpus to 1" in refusal(check_policy, sliced, gpus=2, where="here")
    assert "is empty, but gpus is 8" in refusal(check_policy, own(gpu_resource=""), gpus=8, where="here")
    check_policy(sliced, gpus=1, where="here")
    check_policy(own((GFD, ["NVIDIA-L40S-SHARED"])), gpus=0, where="here")
    check_policy(own((GFD, ["NVIDIA-H200"])), gpus=8, where="here")


def test_selectors_that_no_node_satisfies() -> None:
    """Catches: a pod that stays Pending until a deadline, for a selector that contradicts itself."""
    twice = own((GFD, ["NVIDIA-L4"]), ("zone", ["a"]), (GFD, ["NVIDIA-L40S", "NVIDIA-A10"]))
    line = refusal(check_selectors, twice, where="my-pool.yaml")
    assert line.startswith("my-pool.yaml: node_affinity[2]: contradicts") and f"{GFD} can only be NVIDIA-L4" in line
    other = own((KARPENTER, ["l4"]), (INSTANCE, ["g6e.xlarge", "g6e.2xlarge"]))
    assert f"node_affinity[1]: contradicts {KARPENTER}: L40S here, L4 there" in refusal(
        check_selectors, other, where="here"
    )
    for fine in (
        own((GFD, ["NVIDIA-L4", "NVIDIA-L40S"]), (GFD, ["NVIDIA-L40S"])),
        own((KARPENTER, ["l4"]), (INSTANCE, ["g6.xlarge"])),
        own((KARPENTER, ["l4"]), (INSTANCE, ["new.xlarge"])),
        own(("karpenter.azure.com/sku-gpu-name", ["A10"]), (INSTANCE, ["Standard_NV12ads_A10_v5"])),
    ):
        check_selectors(fine, where="here")


VALUES = st.sampled_from(["L4", "L40S", "A10", "L4-SHARED", "H200", "A100-SXM4-80GB-MIG-1g.10gb", "X", "X-SHARED"]).map(
    "NVIDIA-{}".format
)


def accepted(use: str, values: list[str]) -> bool:
    try:
        if use == "policy":
            check_policy(own((GFD, values)), gpus=1, where="here")
        else:
            check_env(own((GFD, values)), use, gpus=1, where="here")
    except UserError:
        return False
    return True


@given(st.lists(VALUES, min_size=1), st.sampled_from(USES))
def test_a_list_is_as_good_as_its_worst_value(values: list[str], use: str) -> None:
    """Catches: a bad product that hides behind good ones, or an order that matters."""
    assert accepted(use, values) == all(accepted(use, [value]) for value in values)


def test_a_whole_cluster_is_checked() -> None:
    """Catches: a kind of pods that nobody looks at."""
    good = {
        "head": {"placement": "cpu"},
        "policy": {"placement": "onprem-train", "gpus": 8},
        "env": {"placement": "onprem-rt", "gpus": 1, "rendering": "rtx"},
    }
    check_placements(ClusterConfig())
    check_placements(ClusterConfig.model_validate(good))

    def line(pods: str, **changes: Any) -> str:
        return refusal(check_placements, ClusterConfig.model_validate(good | {pods: good[pods] | changes}))

    assert line("head", placement="cqu").startswith("cluster.head.placement: no placement is called 'cqu'")
    assert line("policy", placement="cpu").startswith("cluster.policy.placement 'cpu': gpu_resource: is empty")
    assert "NVIDIA-L4-SHARED is time-shared" in line("policy", placement="onprem-shared")
    assert line("env", placement="gke-h100").startswith("cluster.env.placement 'gke-h100': node_affinity[0].values: ")
    twice = own(("a", ["1"]), ("a", ["2"])).model_dump()
    assert "cluster.head.placement 'mine': node_affinity[1]: contradicts" in line("head", placement=twice)
    config = ClusterConfig.model_validate(good | {"env": good["env"] | {"placement": twice}})
    assert refusal(check_placements, config, {"env": "pools/mine.yaml"}).startswith(
        "pools/mine.yaml: node_affinity[1]: "
    )

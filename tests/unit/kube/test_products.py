"""The vocabulary: every name means what its line says, and every sharing or slicing of a GPU is seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gripline.kube.products import (
    GFD_PRODUCT,
    MIG_RESOURCE,
    USES,
    Gpu,
    combined,
    gpu_named,
    gpu_of_node,
    gpu_of_resource,
    vocabulary,
    with_rt_cores,
)

INSTANCE = "node.kubernetes.io/instance-type"
LINES = [
    (product, label, pattern)
    for product in vocabulary().products
    for label, patterns in product.names.items()
    for pattern in patterns
]
GFD_NAMES = sorted({pattern.replace("*", "X1") for _, label, pattern in LINES if label == GFD_PRODUCT})


def test_the_vocabulary_has_lines() -> None:
    """Catches: a vocabulary that cannot be read, after which every test over its lines passes."""
    assert len(LINES) > 100


@pytest.mark.parametrize(("product", "label", "pattern"), LINES, ids=lambda each: str(each)[:40])
def test_every_line_can_be_reached(product, label: str, pattern: str) -> None:
    """Catches: a label that is not listed, a wide pattern before a narrow one that means another GPU."""
    assert label in vocabulary().labels
    gpu = gpu_named(label, pattern.replace("*", "9"))
    assert gpu is not None
    assert (gpu.product, gpu.rt_cores, gpu.graphics) == (product.product, product.rt_cores, product.graphics)
    assert gpu.form == ("whole" if product.whole else "vgpu")


@pytest.mark.parametrize(
    ("label", "value", "product", "form", "unfit"),
    [
        (GFD_PRODUCT, "NVIDIA-L40S", "L40S", "whole", []),
        (GFD_PRODUCT, "Tesla-T4-SHARED", "T4", "shared", ["rtx", "policy"]),
        (GFD_PRODUCT, "NVIDIA-H200", "H200", "whole", ["rtx"]),
        (GFD_PRODUCT, "A100-SXM4-40GB-MIG-1g.5gb", "A100", "mig", ["rtx", "egl"]),
        (GFD_PRODUCT, "NVIDIA-H100-NVL-MIG-1g.12gb-SHARED", "H100", "shared", ["rtx", "egl", "policy"]),
        (
            GFD_PRODUCT,
            "NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition-MIG-1g.24gb",
            "RTX PRO 6000",
            "mig",
            ["rtx", "egl"],
        ),
        (GFD_PRODUCT, "NVIDIA-RTX-PRO-6000-Blackwell-X-MIG-1g.24gb.gfx", "RTX PRO 6000", "mig", ["rtx"]),
        (GFD_PRODUCT, "NVIDIA-A10-4Q", "", "vgpu", ["rtx"]),
        (GFD_PRODUCT, "NVIDIA-A10-24Q", "A10", "whole", []),
        (GFD_PRODUCT, "NVIDIA-A100-4-20C", "A100", "vgpu", ["rtx"]),
        (GFD_PRODUCT, "NVIDIA-B200", "B200", "whole", ["rtx"]),
        (GFD_PRODUCT, "NVIDIA-RTX-9999-Quantum", "", "whole", []),
        (GFD_PRODUCT, "NVIDIA-RTX-9999-Quantum-SHARED", "", "shared", ["rtx", "policy"]),
        ("cloud.google.com/gke-accelerator", "nvidia-h100-mega-80gb", "H100", "whole", ["rtx"]),
        ("cloud.google.com/gke-accelerator", "nvidia-l9", "", "whole", []),
        ("cloud.google.com/gke-gpu-sharing-strategy", "time-sharing", "", "shared", ["rtx", "policy"]),
        ("cloud.google.com/gke-gpu-partition-size", "1g.10gb", "", "mig", ["rtx", "egl"]),
        ("cloud.google.com/gke-gpu-partition-size", "1g.24gb.gfx", "", "mig", ["rtx"]),
        (INSTANCE, "Standard_NC72ds_xl_RTXPRO6000BSE_v6", "RTX PRO 6000", "vgpu", ["rtx"]),
        (INSTANCE, "Standard_ND96isr_MI300X_v5", "MI300X", "whole", ["rtx", "egl"]),
        ("karpenter.azure.com/sku-gpu-name", "A100", "A100", "whole", ["rtx"]),
    ],
)
def test_what_a_label_names(label: str, value: str, product: str, form: str, unfit: list[str]) -> None:
    gpu = gpu_named(label, value)
    assert gpu is not None
    assert (gpu.product, gpu.form) == (product, form)
    assert [use for use in USES if gpu.obstacle(use)] == unfit


@pytest.mark.parametrize(
    ("label", "value"),
    [
        (INSTANCE, "m5.large"),
        ("kubernetes.io/hostname", "NVIDIA-L40S"),
        ("nvidia.com/gpu.sharing-strategy", "none"),
    ],
)
def test_other_labels_name_no_gpu(label: str, value: str) -> None:
    """Catches: a CPU machine, or a GPU that is not shared, that is taken for something else."""
    assert gpu_named(label, value) is None


@given(st.sampled_from(GFD_NAMES), st.sampled_from(["1g.5gb", "7g.80gb", "1g.24gb.gfx"]))
def test_no_part_of_a_gpu_is_for_ray_tracing(name: str, profile: str) -> None:
    """Catches: a shared or sliced GPU that passes for the whole one it is cut from."""
    for value in (f"{name}-SHARED", f"{name}-MIG-{profile}", f"{name}-MIG-{profile}-SHARED"):
        gpu = gpu_named(GFD_PRODUCT, value)
        assert gpu is not None and gpu.obstacle("rtx")
        assert bool(gpu.obstacle("policy")) == value.endswith("-SHARED")
        assert "-MIG-" not in value or bool(gpu.obstacle("egl")) == ("gfx" not in value)


@given(st.dictionaries(st.sampled_from(sorted(vocabulary().labels)), st.text(max_size=12)))
def test_any_labels_are_understood(labels: dict[str, str]) -> None:
    """Catches: a traceback for a label value that nobody thought of."""
    gpu = gpu_of_node(labels)
    assert gpu is None or gpu.value in labels.values()


@given(st.lists(st.builds(Gpu, st.just("x"), st.just(""), *[st.sampled_from([None, True, False])] * 2), min_size=1))
def test_the_worst_that_is_told_counts(told: list[Gpu]) -> None:
    both = combined(*told)
    assert (both.rt_cores is False) == any(gpu.rt_cores is False for gpu in told)
    assert (both.graphics is False) == any(gpu.graphics is False for gpu in told)


def test_labels_of_a_node_are_read_together() -> None:
    """Catches: a time-shared GKE pool that passes for a whole L4, a part of an A10 that passes for one."""
    gke = {"cloud.google.com/gke-accelerator": "nvidia-l4", "cloud.google.com/gke-gpu-sharing-strategy": "time-sharing"}
    shared = gpu_of_node(gke)
    assert shared is not None and (shared.product, shared.form) == ("L4", "shared")
    azure = {
        "karpenter.azure.com/sku-gpu-name": "A10",
        "node.kubernetes.io/instance-type": "Standard_NV12ads_A10_v5",
    }
    part = gpu_of_node(azure)
    assert part is not None and (part.product, part.form) == ("A10", "vgpu")
    known = gpu_of_node({"gpu.nvidia.com/class": "new", "node.kubernetes.io/instance-type": "g6e.xlarge"})
    assert known is not None and known.product == "L40S"
    assert gpu_of_node({"node.kubernetes.io/instance-type": "m5.large"}) is None


def test_resources_tell_slices_and_sharing() -> None:
    assert gpu_of_resource("nvidia.com/gpu").form == "whole"
    assert gpu_of_resource("nvidia.com/gpu.shared").form == "shared"
    assert gpu_of_resource("nvidia.com/mig-1g.10gb").obstacle("egl")
    assert not gpu_of_resource("nvidia.com/mig-1g.24gb.gfx").obstacle("egl")
    for name in ("mig-1g.5gb", "mig-1c.3g.20gb", "mig-1g.24gb.me.all", "mig-1g.24gb-me", "mig-2g.48gb.gfx"):
        assert MIG_RESOURCE.fullmatch(f"nvidia.com/{name}"), name
    for name in ("mig-1g5gb", "mig-all", "mig-1g.5gb+me", "mig-"):
        assert not MIG_RESOURCE.fullmatch(f"nvidia.com/{name}"), name


def test_titles_name_the_product_where_the_value_does_not() -> None:
    title = {value: gpu.title for value in ("p5.48xlarge", "g6e.xlarge") if (gpu := gpu_named(INSTANCE, value))}
    assert title == {"p5.48xlarge": "p5.48xlarge (H100)", "g6e.xlarge": "g6e.xlarge (L40S)"}
    h200 = gpu_named(GFD_PRODUCT, "NVIDIA-H200")
    assert h200 is not None and h200.title == "NVIDIA-H200"


def test_products_with_rt_cores_are_listed_once() -> None:
    names = with_rt_cores()
    assert len(names) == len(set(names)) and {"L4", "L40S", "A10", "RTX PRO 6000"} <= set(names)
    assert not {"A100", "H100", "H200", "B200", "A30"} & set(names)

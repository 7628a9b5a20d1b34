"""Which GPU a node label names, and what it can be used for. The vocabulary is data: `products.yaml`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Literal

import yaml

from gripline.section import Section

Form = Literal["whole", "vgpu", "mig", "shared"]
FORMS: tuple[Form, ...] = ("whole", "vgpu", "mig", "shared")
"""From the whole GPU to what has least of one. vgpu: a part that the hypervisor cut. shared: time-slicing."""
_FORMS_TOLD = {"whole": "", "vgpu": "is a part of a GPU", "mig": "is a MIG slice", "shared": "is time-shared"}
Use = Literal["rtx", "egl", "policy"]
USES: tuple[Use, ...] = ("rtx", "egl", "policy")
GFD_PRODUCT = "nvidia.com/gpu.product"
"""The one label whose values change when the GPU is shared or sliced."""
MIG_PREFIX = "nvidia.com/mig-"
MIG_RESOURCE = re.compile(r"nvidia\.com/mig-(\d+c\.)?\d+g\.\d+gb([-.][a-z.]+)?")
"""As the device plugin spells it: 1g.24gb+gfx of nvidia-smi is nvidia.com/mig-1g.24gb.gfx."""
_VGPU = re.compile(r".+-\d+[ABCQ]")


class Product(Section):
    """One kind of GPU, and how node labels call it."""

    product: str
    rt_cores: bool
    graphics: bool
    whole: bool = True
    names: dict[str, tuple[str, ...]]
    """Label → values."""


class Vocabulary(Section):
    """What `products.yaml` holds; each field is explained there."""

    labels: dict[str, Literal["gpu", "machine"]]
    shared: dict[str, tuple[str, ...]]
    mig: dict[str, tuple[str, ...]]
    products: tuple[Product, ...]


@dataclass(frozen=True)
class Gpu:
    """What a pod gets when it asks for one GPU."""

    value: str
    """Of the label that names it."""
    product: str = ""
    """Empty: not in the vocabulary."""
    rt_cores: bool | None = None
    """None: nobody knows."""
    graphics: bool | None = None
    form: Form = "whole"

    @property
    def title(self) -> str:
        """'nvidia-l4 (L4)', 'NVIDIA-L4', or the value alone where the product is unknown."""
        known = not self.product or self.product.lower() in self.value.lower()
        return self.value if known else f"{self.value} ({self.product})"

    def obstacle(self, use: Use) -> str:
        """Why it is known to be unfit for this use, to be read after its title; empty: nothing speaks against it."""
        if use == "rtx":
            if self.rt_cores is False:
                return "has no RT cores"
            return _FORMS_TOLD[self.form]
        if use == "egl" and self.graphics is False:
            return "is a MIG slice without graphics (EGL)" if self.form == "mig" else "has no graphics (EGL)"
        if use == "policy" and self.form == "shared":
            return "is time-shared, so its memory is not the policy's own"
        return ""


@cache
def vocabulary() -> Vocabulary:
    text = (files("gripline.kube") / "products.yaml").read_text(encoding="utf-8")
    return Vocabulary.model_validate(yaml.safe_load(text))


def gpu_named(label: str, value: str) -> Gpu | None:
    """What a node with this label has; None where the label says nothing of a GPU."""
    words = vocabulary()
    if label in words.shared:
        return replace(Gpu(value), form="shared") if _matches(value, words.shared[label]) else None
    if label in words.mig:
        return _slice(Gpu(value), value) if _matches(value, words.mig[label]) else None
    if label not in words.labels:
        return None
    whole, profile, shared = _parts(value) if label == GFD_PRODUCT else (value, "", False)
    product = _product(label, whole)
    if product is None and words.labels[label] == "machine":
        return None
    gpu = Gpu(value)
    if product is not None:
        gpu = Gpu(value, product.product, product.rt_cores, product.graphics, "whole" if product.whole else "vgpu")
    listed = product is not None and whole in product.names[label]
    if label == GFD_PRODUCT and not listed and _VGPU.fullmatch(whole):
        gpu = replace(gpu, form="vgpu")
    gpu = _slice(gpu, profile) if profile else gpu
    return replace(gpu, form="shared") if shared else gpu


def gpu_of_node(labels: Mapping[str, str]) -> Gpu | None:
    """The GPU of a node with these labels, with the worst that any of them tells of it; None: none is named."""
    words = vocabulary()
    told = [gpu for label in words.labels if label in labels and (gpu := gpu_named(label, labels[label]))]
    if not told:
        return None
    told.sort(key=lambda gpu: not gpu.product)  # a known name before an unknown one, else the order of the vocabulary
    marks = [gpu_named(label, labels[label]) for label in (*words.shared, *words.mig) if label in labels]
    return combined(told[0], *told[1:], *(gpu for gpu in marks if gpu))


def combined(gpu: Gpu, *others: Gpu) -> Gpu:
    """`gpu` with the worst that is told of it."""
    every = (gpu, *others)
    return replace(
        gpu,
        form=max((one.form for one in every), key=FORMS.index),
        rt_cores=False if any(one.rt_cores is False for one in every) else gpu.rt_cores,
        graphics=False if any(one.graphics is False for one in every) else gpu.graphics,
    )


def gpu_of_resource(resource: str) -> Gpu:
    """What the name of an extended resource tells of one unit of it."""
    if resource.startswith(MIG_PREFIX):
        return _slice(Gpu(resource), resource)
    return Gpu(resource, form="shared" if resource.endswith(".shared") else "whole")


def with_rt_cores() -> list[str]:
    """The products that ray-trace, as a person calls them."""
    return [product.product for product in vocabulary().products if product.rt_cores and product.whole]


def _slice(gpu: Gpu, profile: str) -> Gpu:
    """A MIG slice of it; only profiles with +gfx draw."""
    return replace(gpu, form="mig", graphics=gpu.graphics is not False and bool(re.search(r"[.+]gfx\b", profile)))


def _parts(value: str) -> tuple[str, str, bool]:
    """(name of the whole GPU, profile of the MIG slice, whether it is shared) of a value of nvidia.com/gpu.product."""
    name = value.removesuffix("-SHARED")
    whole, _, profile = name.partition("-MIG-")
    return whole, profile, name != value


def _product(label: str, name: str) -> Product | None:
    for product in vocabulary().products:
        if label in product.names and _matches(name, product.names[label]):
            return product
    return None


def _matches(value: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(value, pattern) for pattern in patterns)

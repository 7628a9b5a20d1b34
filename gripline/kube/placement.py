"""Placements: what is shipped, and whether one of them, or one of yours, can do what a kind of pod needs.

Nothing here asks a cluster. What a cluster really has: `gripline.kube.pools`.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files

import yaml

from gripline.cluster_config import ClusterConfig, EnvGroup, Placement, PodConfig, PolicyGroup
from gripline.errors import UserError, did_you_mean
from gripline.kube.products import (
    MIG_PREFIX,
    MIG_RESOURCE,
    Gpu,
    Use,
    gpu_named,
    gpu_of_resource,
    with_rt_cores,
)


@cache
def shipped() -> Mapping[str, Placement]:
    """Every shipped placement by its name."""
    folder = files("gripline.kube.placements")
    texts = sorted(entry.read_text(encoding="utf-8") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    found = [Placement.model_validate(yaml.safe_load(text)) for text in texts]
    return {placement.name: placement for placement in sorted(found, key=lambda one: one.name)}


def placement(named: str | Placement, *, where: str = "placement") -> Placement:
    """The shipped placement of this name; one that is given is returned as it is. Raises UserError."""
    if isinstance(named, Placement):
        return named
    if named not in shipped():
        step = f"{did_you_mean(named, shipped())} (the path of your own must end in .yaml)"
        raise UserError(where, "", f"no placement is called {named!r}", step)
    return shipped()[named]


def pods_of(cluster: ClusterConfig) -> dict[str, PodConfig]:
    """The kinds of pods that have a placement, by the names of their fields."""
    return {"head": cluster.head, "policy": cluster.policy, "env": cluster.env}


def check_placements(cluster: ClusterConfig, sources: Mapping[str, str] | None = None) -> None:
    """Every kind of pod has a placement that can do what is asked of it.

    sources: {field of `cluster`: the file that its placement comes from}, for the errors. Raises UserError.
    """
    for field, pods in pods_of(cluster).items():
        where = f"cluster.{field}.placement"
        found = placement(pods.placement, where=where)
        where = sources[field] if sources and field in sources else f"{where} {found.name!r}"
        check_selectors(found, where=where)
        if isinstance(pods, EnvGroup):
            check_env(found, pods.rendering, gpus=pods.gpus, where=where)
        elif isinstance(pods, PolicyGroup):
            check_policy(found, gpus=pods.gpus, where=where)


def check_selectors(placement: Placement, *, where: str) -> None:
    """Some node can satisfy all of its requirements. Raises UserError."""
    values: dict[str, set[str]] = {}
    products: dict[str, set[str]] = {}
    for index, requirement in enumerate(placement.node_affinity):
        field, label = f"node_affinity[{index}]", requirement.label
        given = set(requirement.values)
        if label in values and not values[label] & given:
            earlier = ", ".join(sorted(values[label]))
            problem = f"contradicts an earlier requirement: {label} can only be {earlier}"
            raise UserError(where, field, problem, "a node must satisfy all of them; put the values into one list")
        values[label] = values[label] & given if label in values else given
        named = {gpu.product if gpu else "" for gpu in (gpu_named(label, value) for value in values[label])}
        if "" in named:  # a value outside of the vocabulary may be any GPU
            continue
        for other, theirs in products.items():
            if not theirs & named:
                problem = f"contradicts {other}: {_listed(named)} here, {_listed(theirs)} there"
                raise UserError(where, field, problem, "a node must satisfy both; leave one out")
        products[label] = named


def check_env(placement: Placement, rendering: str, *, gpus: int = 0, where: str) -> None:
    """A simulator can draw there.

    rendering: as of `EnvGroup`. 'rtx' needs a whole GPU with RT cores, and the placement must say which; 'egl' needs
    graphics, which a MIG slice has only with a profile +gfx. gpus: of one pod; drawing takes one at least. Raises
    UserError with what works.
    """
    if rendering == "cpu":
        _check_gpus(placement, None, gpus, where=where)
        return
    use: Use = "rtx" if rendering == "rtx" else "egl"
    _check_gpus(placement, use, max(gpus, 1), where=where)
    if use == "rtx" and not placement.rt_cores and not _promises_rt_cores(placement):
        unknown = [value for _, value, gpu in _named(placement) if gpu is not None and not gpu.product]
        problem = "names no GPU" if not unknown else f"{unknown[0]!r} is in no list of ours"
        step = f"{_what_works('rtx')}; if you know that yours has RT cores, say rt_cores: true in the placement"
        field = "node_affinity"
        raise UserError(where, field, f"{problem}, and rendering 'rtx' needs one that is known for RT cores", step)


def check_policy(placement: Placement, *, gpus: int, where: str) -> None:
    """A policy server or the learner can run there: no time-shared GPU, whose memory others may take.

    gpus: of one pod. Raises UserError.
    """
    _check_gpus(placement, "policy", gpus, where=where)


def _check_gpus(placement: Placement, use: Use | None, gpus: int, *, where: str) -> None:
    """As many GPUs can be asked for in one pod, and each is fit for its use."""
    resource = placement.gpu_resource
    if resource.startswith(MIG_PREFIX) and not MIG_RESOURCE.fullmatch(resource):
        problem = f"{resource!r} is no MIG resource"
        raise UserError(where, "gpu_resource", problem, f"such as {MIG_PREFIX}1g.24gb or {MIG_PREFIX}1g.24gb.gfx")
    if not gpus:
        return
    if not resource:
        problem, step = f"is empty, but gpus is {gpus}", "set it to nvidia.com/gpu, or gpus to 0"
        raise UserError(where, "gpu_resource", problem, step)
    for field, gpu in _gpus(placement):
        if use and (obstacle := gpu.obstacle(use)):
            needed = "the policy" if use == "policy" else f"rendering {use!r}"
            raise UserError(where, field, f"{gpu.title} {obstacle}: not for {needed}", _what_works(use))
        if gpus > 1 and gpu.form in ("mig", "shared"):
            what = "MIG slices: a process sees only one" if gpu.form == "mig" else "a time-shared GPU: they may be one"
            raise UserError(where, field, f"{gpus} gpus of a pod would be {what}", "set gpus to 1, and replicas higher")


def _gpus(placement: Placement) -> Iterator[tuple[str, Gpu]]:
    """(field, GPU) of everything that tells of the GPUs that pods may get."""
    yield "gpu_resource", gpu_of_resource(placement.gpu_resource)
    for field, _, gpu in _named(placement):
        if gpu is not None:
            yield field, gpu


def _named(placement: Placement) -> Iterator[tuple[str, str, Gpu | None]]:
    """(field, value, its GPU if it names one) of every value of every requirement."""
    for index, requirement in enumerate(placement.node_affinity):
        for value in requirement.values:
            yield f"node_affinity[{index}].values", value, gpu_named(requirement.label, value)


def _promises_rt_cores(placement: Placement) -> bool:
    """One requirement alone makes sure of them, whatever the others say."""
    for requirement in placement.node_affinity:
        named = [gpu_named(requirement.label, value) for value in requirement.values]
        if all(gpu is not None and gpu.rt_cores for gpu in named):
            return True
    return False


def _what_works(use: Use) -> str:
    """The next step: products and shipped placements that are fit for it."""
    products = f"{', '.join(with_rt_cores())}; " if use == "rtx" else ""
    return f"what works: {products}placements {', '.join(fit_for(use))}"


@cache
def fit_for(use: Use) -> tuple[str, ...]:
    """The shipped placements that may be used so."""
    fit = []
    for name, one in shipped().items():
        if not one.gpu_resource or any(gpu.obstacle(use) for _, gpu in _gpus(one)):
            continue
        if use != "rtx" or _promises_rt_cores(one):
            fit.append(name)
    return tuple(fit)


def _listed(products: Iterable[str]) -> str:
    return ", ".join(sorted(products))

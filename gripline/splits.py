"""Which episodes train, which validate, which test: content-hashed lists that never share an initial state.

The test lists (IID, OOD) depend on `splits.seed` only, so that runs with different training seeds are tested on the
same episodes; the train and validation lists depend on the run's seed too and avoid every tested state. What an OOD
axis changes is in `gripline.axes`; switching one on leaves the episodes of all others as they are.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import ValidationError

from gripline.atomic import write_whole
from gripline.axes import AXES, check_axes, draw_changes
from gripline.config import EnvConfig
from gripline.envs.suites import swapped_instruction, task_info
from gripline.errors import UserError
from gripline.splits_config import OOD_AXES, Axis, SplitsConfig, VariationConfig
from gripline.types import EpisodeSpec, Perturbation, Split

VISUAL_AXES = ("camera", "light", "colour")
ABLATIONS = ("no_image", "no_instruction", "swapped_instruction")
_SEED_LIMIT = 2**31 - 1


class Splits:
    """The lists of one run: `lists` maps train, val, iid, ood and ablations to episodes in their fixed order."""

    NAMES = ("train", "val", "iid", "ood", "ablations")

    def __init__(self, lists: dict[str, list[EpisodeSpec]]) -> None:
        self.lists = lists
        check_disjoint(lists)

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each list's canonical JSON."""
        return {name: _hash(self.lists[name]) for name in self.NAMES}

    @property
    def tested(self) -> list[EpisodeSpec]:
        """What one evaluation runs, in order."""
        return [*self.lists["iid"], *self.lists["ood"], *self.lists["ablations"]]

    def write(self, path: str | Path) -> None:
        """Write the lists and their hashes as JSON, whole or not at all."""
        body = {
            "hashes": self.hashes,
            "lists": {
                name: [spec.model_dump(mode="json", exclude_defaults=True) for spec in self.lists[name]]
                for name in self.NAMES
            },
        }
        write_whole(Path(path), json.dumps(body))

    @classmethod
    def read(cls, path: str | Path) -> "Splits":
        """Read and verify. Raises UserError when the file is damaged or edited: hashes must match the lists."""
        rebuild = "run the plan stage again"
        try:
            body = json.loads(Path(path).read_text(encoding="utf-8"))
            splits = cls({name: [EpisodeSpec.model_validate(row) for row in body["lists"][name]] for name in cls.NAMES})
            recorded = dict(body["hashes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise UserError(str(path), "lists", f"not a readable split file: {reason}", rebuild) from error
        wrong = [name for name, value in splits.hashes.items() if recorded.pop(name, None) != value]
        if wrong:
            raise UserError(str(path), f"hashes.{wrong[0]}", "does not match its list: the file was edited", rebuild)
        return splits


def check_disjoint(lists: dict[str, list[EpisodeSpec]]) -> None:
    """Raise UserError if two of train, val, iid and ood share an initial state (ablations are IID episodes)."""
    owner: dict[tuple[str, str, int, str], str] = {}
    for name in ("train", "val", "iid", "ood"):
        for spec in lists[name]:
            held_by = owner.setdefault(spec.init_state_key, name)
            if held_by != name:
                where = f"{spec.task} init seed {spec.init_seed}"
                raise UserError(
                    "splits", name, f"{where} is also in {held_by!r}", "a tested state must never be trained on"
                )


class SplitSource(Protocol):
    """What decides the lists: a whole profile, or the section of the demonstrations stage."""

    @property
    def env(self) -> EnvConfig: ...
    @property
    def splits(self) -> SplitsConfig: ...
    @property
    def variation(self) -> VariationConfig: ...
    @property
    def seed(self) -> int: ...


def build_splits(profile: SplitSource) -> Splits:
    """Draw every list of a profile. The same profile gives the same lists in every process and on every machine.

    Raises UserError for tasks, axes and textures that the suite does not have.
    """
    env, sizes = profile.env, profile.splits
    for task in env.tasks:
        task_info(env.suite, task)
    check_axes(env.suite, env.tasks, sizes.ood)
    lists: dict[str, list[EpisodeSpec]] = {name: [] for name in Splits.NAMES}
    for position, task in enumerate(env.tasks):
        test = np.random.default_rng([sizes.seed, position, 1])
        num_tested = sizes.iid_per_task + len(OOD_AXES) * sizes.ood_per_task
        tested = _distinct_seeds(test, num_tested, avoid=frozenset())
        own = np.random.default_rng([sizes.seed, profile.seed, position, 2])
        iid = [_spec(env, task, seed, "iid", "iid") for seed in tested[: sizes.iid_per_task]]
        ood = _default_ood_specs(profile, task, tested[sizes.iid_per_task :], test)
        for axis in AXES:
            if axis in sizes.ood.axes and axis not in OOD_AXES and axis != "unseen_task":
                ood += _further_ood_specs(profile, axis, task, avoid=frozenset(tested))
        tested += [spec.init_seed for spec in ood]
        trained = _distinct_seeds(own, sizes.train_per_task + sizes.val_per_task, avoid=frozenset(tested))
        lists["iid"] += iid
        lists["ood"] += ood
        lists["ablations"] += _ablation_specs(env, iid[: sizes.ablation_per_task])
        lists["train"] += [
            _spec(env, task, seed, "train", "train", perturbation=draw_variation(profile.variation, own))
            for seed in trained[: sizes.train_per_task]
        ]
        lists["val"] += [_spec(env, task, seed, "val", "val") for seed in trained[sizes.train_per_task :]]
    for task in sizes.ood.unseen_tasks:
        lists["ood"] += _further_ood_specs(profile, "unseen_task", task, avoid=frozenset())
    return Splits(lists)


def draw_variation(variation: VariationConfig, rng: np.random.Generator) -> Perturbation:
    """One look of the training scene, uniform over the configured ranges."""
    right, up, back = rng.uniform(-variation.camera_m, variation.camera_m, size=3)
    red, green, blue = rng.uniform(*variation.colour, size=3)
    return Perturbation(
        camera_offset_m=(round(right, 4), round(up, 4), round(back, 4)),
        light_gain=round(rng.uniform(*variation.light), 4),
        colour_gain=(round(red, 4), round(green, 4), round(blue, 4)),
    )


def _spec(env: EnvConfig, task: str, init_seed: int, split: Split, axis: str, **changes: object) -> EpisodeSpec:
    fields: dict[str, object] = {"suite": env.suite, "task": task}
    fields |= {"instruction": task_info(env.suite, task).instruction}
    fields |= {"init_seed": init_seed, "split": split, "axis": axis}
    return EpisodeSpec.model_validate(fields | changes)


def _default_ood_specs(
    profile: SplitSource, task: str, seeds: list[int], rng: np.random.Generator
) -> list[EpisodeSpec]:
    """Episodes of the axes that are tested by default. Those switched off are drawn as well, and then left out."""
    env, size, ood = profile.env, profile.splits.ood_per_task, profile.splits.ood
    specs: list[EpisodeSpec] = []
    for number, axis in enumerate(OOD_AXES):
        for index, seed in enumerate(seeds[number * size : (number + 1) * size]):
            changes = draw_changes(axis, ood, env.suite, task, index, rng)
            if axis != "camera":
                rng.random()  # each episode takes one number, of which only the camera makes use
            if axis in ood.axes:
                specs.append(_spec(env, task, seed, "ood", axis, **changes))
    return specs


def _further_ood_specs(profile: SplitSource, axis: Axis, task: str, *, avoid: frozenset[int]) -> list[EpisodeSpec]:
    """Episodes of an axis that a profile switched on, from a generator that no other axis or task draws from."""
    env, sizes = profile.env, profile.splits
    rng = np.random.default_rng([sizes.seed, int.from_bytes(f"{axis} {task}".encode())])
    seeds = _distinct_seeds(rng, sizes.ood_per_task, avoid)
    return [
        _spec(env, task, seed, "ood", axis, **draw_changes(axis, sizes.ood, env.suite, task, index, rng))
        for index, seed in enumerate(seeds)
    ]


def _ablation_specs(env: EnvConfig, iid: list[EpisodeSpec]) -> list[EpisodeSpec]:
    """The same IID episodes with one input taken away or swapped: what a blind or deaf policy still scores."""

    def changed(spec: EpisodeSpec, ablation: str) -> EpisodeSpec:
        if ablation == "no_image":
            return spec.model_copy(update={"axis": ablation, "perturbation": Perturbation(blank_image=True)})
        text = "" if ablation == "no_instruction" else swapped_instruction(env.suite, spec.task, env.tasks)
        return spec.model_copy(update={"axis": ablation, "instruction": text})

    return [changed(spec, ablation) for ablation in ABLATIONS for spec in iid]


def _distinct_seeds(rng: np.random.Generator, count: int, avoid: frozenset[int]) -> list[int]:
    def stream() -> Iterator[int]:
        seen = set(avoid)
        while True:
            seed = int(rng.integers(_SEED_LIMIT))
            if seed not in seen:
                seen.add(seed)
                yield seed

    seeds = stream()
    return [next(seeds) for _ in range(count)]


def _hash(specs: Iterable[EpisodeSpec]) -> str:
    text = json.dumps([spec.model_dump(mode="json") for spec in specs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

"""`gripline axes`: a contact sheet of the OOD axes of a suite, so that their strengths can be judged by eye."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gripline.axes import draw_changes
from gripline.config import EnvConfig
from gripline.envs import make_env
from gripline.envs.suites import suite_info, task_info
from gripline.errors import UserError
from gripline.splits_config import Axis, OodConfig
from gripline.types import Env, EpisodeSpec

SIZE_PX = 192
HORIZON_STEPS = 200
FACTORS = (0.5, 1.0, 1.5, 2.0)
"""Columns: how strong, as multiples of the default."""


@dataclass(frozen=True)
class Cell:
    """One picture of the sheet."""

    spec: EpisodeSpec
    caption: str
    moves: bool = False
    """Whether the expert's actions come first, all but the last: friction and mass show in nothing else."""


def draw(suite: str, task: str, out: Path | None) -> Path:
    """Write the sheet as a PNG; returns its path. Raises UserError for an unknown suite or task and another suffix."""
    info = suite_info(suite)
    task = task or next(iter(info.tasks))
    task_info(suite, task)
    path = out if out is not None else Path(f"axes-{suite}.png")
    if path.suffix != ".png":
        raise UserError("gripline axes", "--out", f"{path.name!r} does not end in .png", "choose such a name")
    if not path.parent.is_dir():
        raise UserError("gripline axes", "--out", f"{path.parent} is no folder", "make it first")
    rows = {"as in training": list(_base(suite, task))}
    rows |= {axis: list(_cells(axis, suite, task)) for axis in info.axes}
    _write(path, f"{suite}, {task}: what the policy sees", rows, _pictures(suite, task, rows))
    return path


def _base(suite: str, task: str) -> Iterator[Cell]:
    for seed in range(len(FACTORS)):
        yield Cell(_spec(suite, task, seed), f"init seed {seed}")


def _cells(axis: Axis, suite: str, task: str) -> Iterator[Cell]:
    """The pictures of one row. All are of one initial state, where the axis does not change just that."""
    others = [other for other in suite_info(suite).tasks if other != task]
    for index, factor in enumerate(FACTORS):
        if axis == "unseen_task":
            if index < len(others):
                spec = _spec(suite, others[index], 0)
                yield Cell(spec, f"“{spec.instruction}”")
            continue
        if axis == "physics" and index == 0:
            factor = 0.0  # to compare with
        rng = np.random.default_rng(index)
        changes = draw_changes(axis, OodConfig().scaled(factor), suite, task, index, rng)
        spec = _spec(suite, task, index if axis == "position" else 0, **changes)
        yield Cell(spec, _caption(axis, spec), moves=axis == "physics")


def _spec(suite: str, task: str, seed: int, **changes: object) -> EpisodeSpec:
    fields: dict[str, object] = {"suite": suite, "task": task, "instruction": task_info(suite, task).instruction}
    return EpisodeSpec.model_validate(fields | {"init_seed": seed, "split": "ood"} | changes)


def _caption(axis: Axis, spec: EpisodeSpec) -> str:
    look = spec.perturbation
    right, up, _ = look.camera_offset_m
    hand = ", ".join(f"{part * 100:+.0f}" for part in look.hand_offset_m)
    captions = {
        "position": f"init seed {spec.init_seed}, outside",
        "camera": f"{right * 100:+.0f} cm right, {up * 100:+.0f} cm up",
        "light": f"light × {look.light_gain:.2g}",
        "colour": "rgb × " + " ".join(f"{gain:.2g}" for gain in look.colour_gain),
        "paraphrase": f"“{spec.instruction}”",
        "robot": f"hand {hand} cm (x, y, z)",
        "fov": f"{look.fov_offset_deg:+.0f}°",
        "texture": look.texture,
        "distractors": f"{len(look.distractors)} things",
        "physics": f"friction × {look.friction_gain:.2g}, mass × {look.mass_gain:.2g}, same actions",
    }
    return captions[axis]


def _pictures(suite: str, task: str, rows: dict[str, list[Cell]]) -> list[list[np.ndarray]]:
    env = make_env(EnvConfig(suite=suite, tasks=(task,), image_size_px=SIZE_PX, horizon_steps=HORIZON_STEPS))
    moves = any(cell.moves for row in rows.values() for cell in row)
    actions = _expert_actions(env, _spec(suite, task, 0)) if moves else []

    def picture(cell: Cell) -> np.ndarray:
        observation = env.reset(cell.spec)
        for action_KA in actions[:-1] if cell.moves else ():
            step = env.step(action_KA)
            observation = step.observation
            if step.success or step.truncated:
                break
        image_HWC: np.ndarray = observation.images_NHWC[0]
        return image_HWC

    pictures = [[picture(cell) for cell in row] for row in rows.values()]
    env.close()
    return pictures


def _expert_actions(env: Env, spec: EpisodeSpec) -> list[np.ndarray]:
    """Its chunks of one action, the one that ends the episode included."""
    env.reset(spec)
    actions = [env.expert_chunk_KA(1)]
    while not ((step := env.step(actions[-1])).success or step.truncated):
        actions.append(env.expert_chunk_KA(1))
    return actions


def _write(path: Path, title: str, rows: dict[str, list[Cell]], pictures: list[list[np.ndarray]]) -> None:
    from matplotlib.figure import Figure

    height = 2.15 * len(rows) + 0.4
    figure: Any = Figure(figsize=(2.0 * len(FACTORS) + 1.1, height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(len(rows), len(FACTORS), squeeze=False)
    for (name, cells), drawn, line in zip(rows.items(), pictures, panels, strict=True):
        for panel in line:
            panel.axis("off")
        for panel, cell, image_HWC in zip(line, cells, drawn, strict=False):
            panel.imshow(image_HWC)
            panel.set_title(textwrap.fill(cell.caption, 30), fontsize=7.5)
        line[0].text(-0.08, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=10)
    figure.savefig(path, dpi=110)

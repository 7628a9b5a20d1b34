"""Videos for people: recorded episodes replayed in the simulator, with instruction and outcome written on them.

Rollouts take no pictures for people; a replay of the recorded actions from the same initial state is the same episode,
which is checked. The format is GIF: MLflow's artifact page and every browser show it, and it needs no encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gripline import progress
from gripline.atomic import whole
from gripline.config import EnvConfig
from gripline.errors import UserError
from gripline.replay import Frame, replay
from gripline.types import EpisodeRecord

SLOW_MOTION = 2.0
LAST_FRAME_S = 1.5
HEADER_PX, FOOTER_PX, INSET_PX = 46, 30, 76
INK, PAPER, QUIET = (17, 24, 39), (255, 255, 255), (156, 163, 175)
GREEN, RED = (21, 128, 61), (185, 28, 28)


@dataclass(frozen=True)
class Choice:
    """An episode worth looking at, and whose it is: 'SFT' or 'RL'."""

    policy: str
    record: EpisodeRecord


@dataclass(frozen=True)
class Video:
    """A finished video."""

    path: Path
    policy: str
    task: str
    axis: str
    instruction: str
    success: bool


def choose_episodes(
    sft_records: Sequence[EpisodeRecord], rl_records: Sequence[EpisodeRecord], count: int
) -> list[Choice]:
    """At most `count` episodes that tell the story: one that SFT fails and RL solves (both of them), one out of
    distribution, one that RL fails, then further ones of the kind, each from another task where there is one."""
    before = {record.spec.key: record for record in sft_records}
    playable = [record for record in rl_records if record.actions_TKA and not record.error]
    iid = [record for record in playable if record.spec.axis == "iid"]
    ood = [record for record in playable if record.spec.split == "ood"]
    gained = [
        (Choice("SFT", sft), Choice("RL", record))
        for record in _over_tasks(iid)
        if record.success
        and (sft := before.get(record.spec.key))
        and sft.actions_TKA
        and not (sft.success or sft.error)
    ]
    solved_ood = [Choice("RL", record) for record in _over_tasks(ood, skip=1) if record.success]
    failed = [Choice("RL", record) for record in _over_tasks(iid) + _over_tasks(ood) if not record.success]
    story: list[Choice] = []
    for round_ in range(count):
        story += [choice for pair in gained[round_ : round_ + 1] for choice in pair]
        story += solved_ood[round_ : round_ + 1] + failed[round_ : round_ + 1]
    story += [Choice("RL", record) for record in iid + ood]
    distinct = {(choice.policy, choice.record.spec.key): choice for choice in story}
    return list(distinct.values())[:count]


def make_videos(config: EnvConfig, choices: Sequence[Choice], folder: Path, *, size_px: int) -> list[Video]:
    """Replay and draw each; one that does not repeat itself is left out with a warning."""
    folder.mkdir(parents=True, exist_ok=True)
    videos = []
    for number, choice in enumerate(choices, start=1):
        spec = choice.record.spec
        try:
            frames, control_hz = replay(config, choice.record, size_px)
        except UserError as error:
            progress.emit("promote", "warn", text=f"no video: {error}")
            continue
        outcome = "success" if choice.record.success else "failure"
        path = folder / f"{number}-{choice.policy.lower()}-{spec.axis}-{spec.task}-{outcome}.gif"
        write_video(path, frames, control_hz, choice)
        videos.append(Video(path, choice.policy, spec.task, spec.axis, spec.instruction, choice.record.success))
        progress.emit("promote", "note", text=f"video {path.name}")
    return videos


def write_video(path: Path, frames: Sequence[Frame], control_hz: float, choice: Choice) -> None:
    """Draw every frame and write the GIF, in slow motion."""
    pictures = [annotate(frame, choice, control_hz, last=frame is frames[-1]) for frame in frames]
    step_s = (frames[-1].num_steps / max(len(frames) - 1, 1)) / control_hz
    write_gif(path, pictures, frame_s=min(max(SLOW_MOTION * step_s, 0.06), 0.3))


def annotate(frame: Frame, choice: Choice, control_hz: float, *, last: bool) -> Image.Image:
    """The picture between a header (who, where, the instruction) and a footer (clock, and the outcome at the end)."""
    record = choice.record
    height, width = frame.picture_HWC.shape[:2]
    canvas = Image.new("RGB", (width, HEADER_PX + height + FOOTER_PX), INK)
    canvas.paste(Image.fromarray(frame.picture_HWC), (0, HEADER_PX))
    draw = ImageDraw.Draw(canvas)
    draw.text((10, 6), f"{choice.policy} policy  ·  {record.spec.task}  ·  {_measured(record)}", QUIET, _font(12))
    instruction = f"“{record.spec.instruction}”" if record.spec.instruction else "(no instruction)"
    instruction, font_px = _fitting(draw, instruction, width - 20)
    draw.text((10, 22), instruction, PAPER, _font(font_px))
    _paste_inset(canvas, draw, frame.seen_HWC, HEADER_PX + height)
    top, clock = HEADER_PX + height, f"{frame.num_steps / control_hz:.2f} s"
    if last:
        outcome, colour = ("SUCCESS", GREEN) if record.success else ("FAILURE", RED)
        draw.rectangle((0, top, width, top + FOOTER_PX), colour)
        draw.text((10, top + 6), f"{outcome} after {record.num_steps} steps", PAPER, _font(15))
    else:
        done = round(width * frame.num_steps / max(record.num_steps, 1))
        draw.rectangle((0, top, done, top + 3), QUIET)
    draw.text((width - 10, top + 7), clock, PAPER, _font(14), anchor="ra")
    return canvas


def write_gif(path: Path, pictures: Sequence[Image.Image], *, frame_s: float) -> None:
    """Write an endless GIF, whole or not at all. One palette for all frames keeps what stands still from flickering."""
    montage = Image.new("RGB", (pictures[0].width, 3 * pictures[0].height))
    for row, picture in enumerate((pictures[0], pictures[len(pictures) // 2], pictures[-1])):
        montage.paste(picture, (0, row * picture.height))
    palette = montage.quantize(255, method=Image.Quantize.FASTOCTREE)
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    duration_ms = [round(1000 * frame_s)] * (len(frames) - 1) + [round(1000 * LAST_FRAME_S)]
    with whole(path) as temporary:
        frames[0].save(
            temporary, format="GIF", save_all=True, append_images=frames[1:], duration=duration_ms, loop=0, disposal=1
        )


def _over_tasks(records: Sequence[EpisodeRecord], skip: int = 0) -> list[EpisodeRecord]:
    """One of each task in turn (beginning with task number `skip`), so that the first few show different ones."""
    tasks = list(dict.fromkeys(record.spec.task for record in records))
    tasks = tasks[skip:] + tasks[:skip]
    by_task = [[record for record in records if record.spec.task == task] for task in tasks]
    longest = max((len(own) for own in by_task), default=0)
    return [own[index] for index in range(longest) for own in by_task if index < len(own)]


def _measured(record: EpisodeRecord) -> str:
    if record.spec.split == "ood":
        return f"OOD: {record.spec.axis}"
    return "IID" if record.spec.axis == "iid" else record.spec.axis.replace("_", " ")


def _paste_inset(canvas: Image.Image, draw: ImageDraw.ImageDraw, seen_HWC: np.ndarray, bottom: int) -> None:
    """The policy's own picture, over the robot's foot at the lower left, where nothing happens."""
    left, top = 8, bottom - INSET_PX - 21
    draw.rectangle((left - 2, top - 2, left + INSET_PX + 1, top + INSET_PX + 15), INK)
    inset = Image.fromarray(seen_HWC).resize((INSET_PX, INSET_PX), Image.Resampling.NEAREST)
    canvas.paste(inset, (left, top))
    draw.text((left + INSET_PX // 2, top + INSET_PX), "policy's view", PAPER, _font(11), anchor="ma")


def _font(size_px: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size_px)


def _fitting(draw: ImageDraw.ImageDraw, text: str, width_px: int) -> tuple[str, int]:
    """The text and the largest font size in which it fits; very long texts are cut."""
    size_px = 17
    while size_px > 11 and draw.textlength(text, _font(size_px)) > width_px:
        size_px -= 1
    while draw.textlength(text, _font(size_px)) > width_px:
        text = text.rstrip("…”")[:-1] + "…”"
    return text, size_px

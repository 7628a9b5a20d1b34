"""Film strips: one failed episode of each type, as one picture of its moments side by side, which the report animates.

Printed, or where a reader wants no animation, the whole strip is seen.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from components.eval.behaviour import is_counted
from components.eval.videos import Choice
from gripline import progress
from gripline.config import EnvConfig
from gripline.errors import UserError
from gripline.failures import FAILURES
from gripline.replay import Frame, replay
from gripline.types import EpisodeRecord

NUM_FRAMES, FRAME_PX = 10, 200
JPEG_QUALITY = 82


@dataclass(frozen=True)
class Strip:
    """Square frames side by side, `NUM_FRAMES` or fewer, each `FRAME_PX` wide."""

    choice: Choice
    jpeg: bytes
    num_frames: int


def choose_failures(sft_records: Sequence[EpisodeRecord], rl_records: Sequence[EpisodeRecord]) -> list[Choice]:
    """One episode of each failure type that occurs: the RL policy's on IID if there is one, else on OOD, else SFT's."""
    found: dict[str, Choice] = {}
    for policy, records in (("RL", rl_records), ("SFT", sft_records)):
        playable = [record for record in records if record.failure and record.actions_TKA and is_counted(record)]
        for record in sorted(playable, key=lambda record: record.spec.split == "ood"):  # stable: else in list order
            found.setdefault(record.failure, Choice(policy, record))
    return [found[name] for name in FAILURES if name in found]


def make_strips(config: EnvConfig, choices: Sequence[Choice]) -> list[Strip]:
    """Replay and draw each; one that does not repeat itself is left out with a warning."""
    strips = []
    for choice in choices:
        try:
            frames, control_hz = replay(config, choice.record, FRAME_PX)
        except UserError as error:
            progress.emit("promote", "warn", text=f"no film strip: {error}")
            continue
        strips.append(draw_strip(choice, frames, control_hz))
    return strips


def draw_strip(choice: Choice, frames: Sequence[Frame], control_hz: float) -> Strip:
    """Moments evenly spread over the episode, first and last among them, each with its time."""
    moments = np.unique(np.linspace(0, len(frames) - 1, NUM_FRAMES).round().astype(int))
    canvas = Image.new("RGB", (FRAME_PX * len(moments), FRAME_PX))
    draw = ImageDraw.Draw(canvas)
    for place, moment in enumerate(moments):
        left, frame = FRAME_PX * place, frames[moment]
        canvas.paste(Image.fromarray(frame.picture_HWC), (left, 0))
        draw.rectangle((left, FRAME_PX - 22, left + 62, FRAME_PX), (17, 24, 39))
        text = f"{frame.num_steps / control_hz:.2f} s"
        draw.text((left + 6, FRAME_PX - 19), text, (255, 255, 255), ImageFont.load_default(14))
    sink = io.BytesIO()
    canvas.save(sink, format="JPEG", quality=JPEG_QUALITY, optimize=True)
    return Strip(choice, sink.getvalue(), len(moments))

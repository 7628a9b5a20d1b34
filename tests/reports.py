"""Made-up evaluations and what the report makes of them, for tests of several folders."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from components.eval.report import ReportData
from components.eval.strips import FRAME_PX, Strip, choose_failures
from components.eval.videos import Video, write_gif
from gripline.config import PromoteConfig
from gripline.failures import FAILURES
from gripline.summary import RunFacts, Seconds, Summary, summarise
from gripline.types import Conduct, EpisodeRecord, EpisodeSpec

TASKS = ("faucet-open", "faucet-close", "drawer-open")
ABLATIONS = ("no_image", "no_instruction", "swapped_instruction")
BLIND = {"iid": 18, "camera": 9, "light": 17, "no_image": 17, "no_instruction": 9, "swapped_instruction": 0}
"""Successes of 20 a task: the image hardly matters to this policy."""


def evaluation(
    successes: Mapping[str, int], *, n: int = 20, tasks: Sequence[str] = TASKS, types: bool = False, seed: int = 0
) -> list[EpisodeRecord]:
    """n episodes per task and axis, of which the first so many succeed; `types`: with failure types and conduct."""
    rng = np.random.default_rng(seed)
    records = []
    for axis, count in successes.items():
        for task in tasks:
            for number in range(n):
                spec = EpisodeSpec(
                    suite="fake",
                    task=task,
                    instruction=axis,
                    init_seed=number,
                    split="iid" if axis in ("iid", *ABLATIONS) else "ood",
                    axis=axis,
                )
                record = EpisodeRecord(
                    spec=spec, success=number < count, num_steps=9 + number, num_chunks=1, actions_TKA=(((0.5,),),)
                )
                records.append(with_behaviour(record, rng) if types else record)
    return records


def with_behaviour(record: EpisodeRecord, rng: np.random.Generator) -> EpisodeRecord:
    """The record with a failure type and conduct drawn at random; this suite measures no contact force."""
    conduct = Conduct(
        joint_margin=float(rng.uniform(0.02, 0.3)),
        peak_joint_speed_rad_s=float(rng.gamma(4, 0.5)),
        jerk_rms_m_s3=float(rng.gamma(3, 40)),
    )
    failure = "" if record.success else str(rng.choice(FAILURES, p=[0.3, 0.2, 0.15, 0.05, 0.05, 0.05, 0.2]))
    return record.model_copy(update={"failure": failure, "conduct": conduct})


def summary_of(sft: Sequence[EpisodeRecord], rl: Sequence[EpisodeRecord]) -> Summary:
    facts = RunFacts(
        profile="laptop",
        seed=1,
        seconds=Seconds(demos=9.5, sft=20, rl=200, eval=40, total=3700),
        peak_memory_mb=4000,
        env_steps=1234567,
        mlflow_run_id="feed",
        split_hashes={"iid": "0123456789abcdef0123"},
    )
    return summarise(
        sft,
        rl,
        facts=facts,
        promote=PromoteConfig(),
        indifference_threshold=0.1,
        shared_scene_tasks=TASKS[:2],
    )


def curves(types: bool) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Of SFT and of RL, with what a guard logs where there are types."""
    sft = [{"step": step, "train/loss": 1 / (step + 1)} for step in range(9)] + [{"step": 9, "held_out/loss": 1}]
    rl = [{"step": 0, "train/success": 0.4}, {"step": 1, "train/success": 0.6, "val/success": 0.7}]
    guard = {f"guard/train/failure/{name}": 0.1 for name in FAILURES}
    guard |= {f"guard/{source}/conduct/joint_margin": 0.2 for source in ("train", "val")}
    return sft, [row | guard for row in rl] if types else rl


def report_data(folder: Path, sft: Sequence[EpisodeRecord], rl: Sequence[EpisodeRecord]) -> ReportData:
    """With one video, and a film strip for each failure type."""
    path = folder / "1-rl-iid-push-success.gif"
    write_gif(path, [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")], frame_s=0.1)
    sft_curve, rl_curve = curves(any(record.failure for record in rl))
    return ReportData(
        run_name="laptop <1>",
        summary=summary_of(sft, rl),
        success_means="the handle is near its open position",
        sft_curve=sft_curve,
        rl_curve=rl_curve,
        sft_records=sft,
        rl_records=rl,
        strips=[Strip(choice, _jpeg(), num_frames=4) for choice in choose_failures(sft, rl)],
        videos=[Video(path, "RL", "faucet-open", "iid", "open the faucet", True)],
        facts={"commit": "abc123"},
        config={"rl": {"lr": 0.0003}},
    )


def many(types: bool = True) -> tuple[list[EpisodeRecord], list[EpisodeRecord]]:
    """SFT's and RL's episodes of ten tasks with long names and nine axes: as large as reports get."""
    tasks = [f"{verb}-{thing}-v3" for verb in ("open", "close") for thing in ("faucet", "drawer", "window", "door")]
    tasks += ["pick-out-of-hole-v3", "push-wall-with-stick-v3"]
    axes = ("position", "robot_start", "camera", "light", "texture", "distractors", "physics", "paraphrase")
    names = ("iid", *axes, "unseen_task", *ABLATIONS)
    sft = {name: 3 + index % 5 for index, name in enumerate(names)}
    rl = {name: 8 - index % 7 if name in ABLATIONS else 10 - index % 4 for index, name in enumerate(names)}
    return (
        evaluation(sft, n=12, tasks=tasks, types=types, seed=1),
        evaluation(rl, n=12, tasks=tasks, types=types, seed=2),
    )


def _jpeg() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (4 * FRAME_PX, FRAME_PX), "teal").save(sink, format="JPEG")
    return sink.getvalue()

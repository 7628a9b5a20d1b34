"""The process that runs a graph step by step on this machine: `python -m pipelines.graph_process`.

The front end starts it, gives it a `GraphJob` as JSON on standard input, and reads the steps' progress events. When the
front end dies, by whatever means, this process stops every step and ends.
"""

import importlib
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import BaseModel, ConfigDict

from gripline.config import RolloutConfig
from pipelines import processes

POST_TRAINING = "pipelines.post_training:post_training"


class GraphJob(BaseModel):
    """What to run and where its artifacts go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pipeline: str = POST_TRAINING
    """'module:function' of the `@dsl.pipeline`."""
    arguments: dict[str, str | int]
    artifacts: Path
    shared_ray: RolloutConfig | None = None
    """What the Ray cluster that all steps share has room for; None: steps see to theirs."""
    scratch: Path
    """Temporary files of all steps. The front end removes it, and so does this process when the front end is gone."""


def main() -> None:
    """Run the job that standard input describes. Raises RuntimeError when a step fails."""
    job = GraphJob.model_validate_json(sys.stdin.read())

    def stop(number: int, frame: FrameType | None) -> None:
        processes.stop_descendants()
        shutil.rmtree(job.scratch, ignore_errors=True)
        os._exit(128 + number)

    processes.adopt_orphans()
    signal.signal(signal.SIGTERM, stop)
    processes.terminate_with_parent()
    _run(job)


def _run(job: GraphJob) -> None:
    from kfp import local

    if job.shared_ray:
        threading.Thread(target=_start_ray, args=(job.shared_ray,), daemon=True).start()
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(job.artifacts),
        # Steps that KFP may cache are kept in the run's folder, so that a continued run does not repeat them.
        enable_caching=True,
        cache_root=str(job.artifacts / "cache"),
    )
    module, _, name = job.pipeline.partition(":")
    pipeline: Any = getattr(importlib.import_module(module), name)
    pipeline(**job.arguments)


def _start_ray(config: RolloutConfig) -> None:
    """One Ray cluster for all steps, started while the first ones need none: a start takes ten seconds on two cores.

    Steps that begin earlier, or after a failure here, start their own.
    """
    from gripline.rollout.cluster import start_local_cluster

    os.environ["RAY_ADDRESS"] = start_local_cluster(config)
    threading.Event().wait()  # for ever: the kernel ends Ray's daemons with the thread that started them


if __name__ == "__main__":
    main()

"""What runs in the head pod of a RayJob, once per attempt: `python -m gripline.kube.driver RUN_DIR JOB`.

It runs the stage that `request.json` names, on the Ray cluster that it is part of (Ray sets `RAY_ADDRESS` for the
processes of a submitted job), and leaves `result.json`. Each attempt continues from the stage's last checkpoint.
`gripline.kube.jobfiles` has the files, `gripline.kube.guard` what ends an attempt early.

Exit status 0: there is a result, or another try is not wanted (no launcher any more, or a newer attempt owns the run).
2: the stage raised UserError, `error.json` has it. 1: a crash, or a store that is away for too long: worth a retry.
"""

import importlib
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gripline import stopping
from gripline.errors import UserError
from gripline.kube.guard import Guard
from gripline.kube.jobfiles import Abandoned, Attempt, Heartbeat, JobFiles, Refusal, Request, Result, content_hash
from gripline.object_store import StoreOutageError
from gripline.rollout import shares
from gripline.tracking import TAGS_VARIABLE

USAGE = "usage: python -m gripline.kube.driver RUN_DIR JOB"
CRASHED, REFUSED = 1, 2


def main(run_dir: str, job: str) -> int:
    """One attempt; returns the exit status. Raises what the stage raises, if that is a defect."""
    files = JobFiles(run_dir, job)
    attempt = Attempt(attempt=uuid.uuid4().hex, time_s=time.time())
    try:
        request = files.read(Request)
        if request is None:
            raise UserError(f"{files.uri}/{Request.file}", "", "is missing", "a launcher writes it: start that")
        refused = files.read(Refusal)
        if refused is not None:  # a new launch would have removed it
            raise refused.error
        files.write(attempt)
        with Guard(run_dir, job, attempt.attempt, request):
            return _attempt(files, attempt.attempt, request)
    except stopping.SupersededError as error:
        print(f"gripline: {error}; this attempt ends", flush=True)
        return 0
    except StoreOutageError as error:
        print(f"gripline: {error.line}", file=sys.stderr, flush=True)
        return CRASHED
    except UserError as error:
        # The launcher says the same line as a step says it; this one passes through the step's log besides.
        print(f"[{job}] refused: {error.line}", file=sys.stderr, flush=True)
        return REFUSED


def _attempt(files: JobFiles, attempt: str, request: Request) -> int:
    try:
        result = _result(files, attempt, request)
        stopping.fence()
        files.write(result)
    except stopping.StopRequestedError as stop:
        stopping.fence()
        files.write(Abandoned(attempt=attempt, reason=str(stop), time_s=time.time()))
        print(f"gripline: stopped: {stop}", flush=True)
    except StoreOutageError:
        raise
    except UserError as error:
        told = {name: getattr(error, name) for name in ("where", "field", "problem", "next_step")}
        stopping.fence()
        files.write(Refusal(attempt=attempt, **told))
        raise
    return 0


def _result(files: JobFiles, attempt: str, request: Request) -> Result:
    """Run the stage between its inputs and outputs."""
    _prepare_environment(files, attempt, request)
    function = _function(request.function)
    with tempfile.TemporaryDirectory(prefix="gripline-job-") as folder:
        inputs = {name: files.download(each, Path(folder) / each) for name, each in request.files.items()}
        outputs = {name: Path(folder) / each for name, each in request.outputs.items()}
        for path in outputs.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        paths = {name: str(path) for name, path in (inputs | outputs).items()}
        returned = function(**request.arguments, **paths)
        stopping.fence()
        for name, path in outputs.items():
            files.upload(path, request.outputs[name])
        hashes = {request.outputs[name]: content_hash(path) for name, path in outputs.items()}
    return Result(attempt=attempt, outputs=returned or {}, files=hashes)


def _prepare_environment(files: JobFiles, attempt: str, request: Request) -> None:
    """What the stage finds in its environment: see `gripline.rollout.shares` and `gripline.tracking`."""
    heartbeat = files.read(Heartbeat)
    tags = request.tags | {"gripline.attempt": attempt}
    if heartbeat is not None and heartbeat.rayjob:
        tags |= {"gripline.rayjob": heartbeat.rayjob, "gripline.rayjob_uid": heartbeat.rayjob_uid}
    os.environ[TAGS_VARIABLE] = json.dumps(tags)
    os.environ[shares.VARIABLE] = request.shares.model_dump_json()


def _function(named: str) -> Callable[..., dict[str, Any] | None]:
    module, _, name = named.partition(":")
    try:
        function: Callable[..., dict[str, Any] | None] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        next_step = "step and head must run images of one version"
        raise UserError(named, "", f"is not in this image: {error}", next_step) from error
    return function


if __name__ == "__main__":
    if len(sys.argv) != 3:
        print(USAGE, file=sys.stderr)
        sys.exit(REFUSED)
    sys.exit(main(sys.argv[1], sys.argv[2]))

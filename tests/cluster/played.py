"""A stage whose run is scripted: what the driver runs in these tests instead of SFT, RL or an evaluation."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from gripline import stopping
from gripline.checkpoint import MANIFEST_FILE, file_hash
from gripline.errors import UserError

Action = list[Any]


def run(*, context: str, script: str, note_path: str = "", results_path: str = "") -> dict[str, Any]:
    """Play one list of actions of `script`: the first in the first attempt, the last in all that have none left.

    script: JSON of a list of lists of [verb, argument]: say text · wait seconds · tick seconds (a line with the time
    every 0.2 s) · fail exit code · refuse (a UserError) · damage (the checkpoint is not what its hash says).
    """
    folder = Path(json.loads(context)["run_dir"].removeprefix("file://")) / "played"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "attempts").open("a") as sink:
        sink.write("begun\n")
    attempt = len((folder / "attempts").read_text().splitlines())
    scripts: list[list[Action]] = json.loads(script)
    print(f"attempt {attempt} of the played stage", flush=True)
    damaged = False
    for verb, argument in scripts[min(attempt, len(scripts)) - 1]:
        damaged |= verb == "damage"
        _act(verb, argument, folder)
    if note_path and results_path:
        Path(results_path).write_text(Path(note_path).read_text().upper())
    manifest = folder / "checkpoint" / MANIFEST_FILE
    manifest.parent.mkdir(exist_ok=True)
    manifest.write_text(json.dumps({"attempt": attempt}))
    named = file_hash(manifest)
    if damaged:
        manifest.write_text("{}")
    return {"uri": str(manifest.parent), "hash": named, "attempts": attempt}


def _act(verb: str, argument: Any, folder: Path) -> None:
    match verb:
        case "say":
            print(argument, flush=True)
        case "wait" | "tick":
            _wait(float(argument), folder, tick=verb == "tick")
        case "fail":
            sys.exit(int(argument))
        case "refuse":
            raise UserError("played.yaml", "script", str(argument), "play another script")


def _wait(seconds: float, folder: Path, *, tick: bool) -> None:
    """As a stage goes through its iterations: at each boundary it may be told to stop, and writes a checkpoint then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if tick:
            print(f"tick {time.time():.3f}", flush=True)
        time.sleep(0.2)
        if stopping.requested():
            (folder / "stopped").write_text("a checkpoint of the last iteration\n")
            stopping.check()

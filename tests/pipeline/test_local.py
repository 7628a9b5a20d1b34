"""The front end of a local run, on fake graphs: what it shows, how it ends, and that nothing is left running."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from gripline.config import PromoteConfig
from gripline.errors import UserError
from gripline.stages import RunContext
from gripline.summary import RunFacts, Seconds, read_summary, summarise, write_summary
from gripline.types import EpisodeRecord, EpisodeSpec
from pipelines import local
from pipelines.display import Display
from pipelines.events import Event
from pipelines.run_folder import RunFolder

HERE = Path(__file__).parent
TIMEOUT_S = 60


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with the summary and context that the fake graph's last step leaves."""
    folder = tmp_path / "results"
    folder.mkdir()
    facts = RunFacts(
        profile="smoke",
        seed=1,
        seconds=Seconds(demos=0, sft=0, rl=0, eval=0, total=0),
        peak_memory_mb=0,
        env_steps=10,
        mlflow_run_id="f00",
        split_hashes={},
    )
    specs = [
        EpisodeSpec(suite="fake", task="push", instruction="push", init_seed=seed, split=split, axis=axis)
        for seed, split, axis in ((1, "iid", "iid"), (2, "iid", "iid"), (3, "ood", "camera"))
    ]
    before = [EpisodeRecord(spec=spec, success=False, num_steps=4, num_chunks=1) for spec in specs]
    after = [EpisodeRecord(spec=spec, success=True, num_steps=4, num_chunks=1) for spec in specs]
    summary = summarise(before, after, facts=facts, promote=PromoteConfig(), indifference_threshold=0.1)
    write_summary(folder / "summary.json", summary)
    context = RunContext(
        run_name="x",
        run_dir=str(tmp_path / "x"),
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        experiment="gripline",
        parent_run_id="f00",
        profile_name="smoke",
        seed=1,
        split_hashes={},
    )
    (folder / "context.json").write_text(context.model_dump_json())
    return folder


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A short-named folder for temporary files; pytest's own is too long for Ray's sockets and would be passed over."""
    with tempfile.TemporaryDirectory(prefix="gl", dir="/tmp") as folder:
        yield Path(folder)


def start(
    graph: str, out: Path, *overrides: str, results: Path | None = None, **variables: str
) -> subprocess.Popen[str]:
    """The front end in a process of its own, as a shell would start it."""
    environment = os.environ | {"PYTHONPATH": str(HERE), "FAKE_RESULTS": str(results), "COLUMNS": "150"} | variables
    command = [sys.executable, str(HERE / "run_fake.py"), graph, str(out), *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    output, errors = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, output, errors


def wait_for(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Zombies do not run."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_success_completes_the_summary_and_is_final(tmp_path: Path, results: Path) -> None:
    """Catches: a summary without the run's seconds and memory, a table nobody sees, a rerun that overwrites results."""
    out = tmp_path / "runs" / "one"
    code, output, errors = finish(start("succeeds", out, results=results))
    assert code == 0, errors
    summary = read_summary(out / "summary.json")
    assert summary.seconds.total > 0.3
    assert summary.peak_memory_mb > 50  # two Python processes
    assert "[first] start" in output and "[first] advance 3/3" in output  # plain lines: no terminal here
    assert "warning: first: this is only a test" in output
    for told in (
        "IID",
        "camera",
        "push",
        "not promoted",
        "report:",
        f"sqlite:///{tmp_path}/mlflow.db\n        then http://",
    ):
        assert told in output, told

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    code, _, errors = finish(start("succeeds", out, results=results))
    assert (code, errors) == (2, f"gripline: {out}: --out: holds a finished run; choose another --out\n")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_runs_of_a_server_are_one_address() -> None:
    assert local._mlflow_address("http://mlflow:5000/", "/#/page") == "http://mlflow:5000/#/page"


def test_user_error_is_one_line_and_only_the_same_run_continues(tmp_path: Path) -> None:
    """Catches: tracebacks for the user, lost exit codes, two profiles in one folder, cached steps that run again."""
    out = tmp_path / "one"
    code, _, errors = finish(start("refuses", out))
    assert (code, errors) == (2, "gripline: somewhere.yaml: rl.lr: is not to my liking; try another\n")

    code, _, errors = finish(start("refuses", out, "rl.lr=1e-4"))
    assert code == 2
    assert "rl.lr is 0.0001 here, 0.0003 there" in errors and errors.count("\n") == 1

    code, output, _ = finish(start("refuses", out))
    assert code == 2
    assert output.startswith("continuing ") and "[first]" not in output
    assert (out / "executions").read_text() == "first\n"
    events = [json.loads(line) for line in (out / "progress.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events if event["stage"] == "run"] == ["start", "end", "start", "end"]


@pytest.mark.parametrize(
    ("graph", "told"),
    [("crashes", "stage 'second' broke: RuntimeError: the flux capacitor is empty"), ("vanishes", "without a word")],
)
def test_our_fault_is_exit_1_with_the_log(tmp_path: Path, scratch: Path, graph: str, told: str) -> None:
    """Catches: a crash taken for success or for the user's mistake, Ray's sessions left in /tmp by every run."""
    code, _, errors = finish(start(graph, tmp_path / "one", TMPDIR=str(scratch)))
    assert code == 1
    assert told in errors and str(tmp_path / "one" / "log.txt") in errors and errors.count("\n") == 1
    assert list(scratch.iterdir()) == []


def test_full_disk_in_a_library_is_the_users_to_mend(tmp_path: Path) -> None:
    """Catches: "please report it" for a full disk that a library wrapped into an error of its own."""
    display = Display(Console(quiet=True), ())
    text = "SafetensorError: I/O error: No space left on device (os error 28)"
    display.feed([Event(time_s=1, stage="demos", event="crash", text=text)])
    folder = RunFolder(tmp_path, continued=False, lock_descriptor=-1)
    with pytest.raises(UserError, match="the disk is full"):
        local._explain_failure(folder, display, exit_code=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupt_leaves_no_process_behind(tmp_path: Path, scratch: Path, number: signal.Signals) -> None:
    """A daemon that left session and parent and ignores SIGTERM is found too. Catches: Ray processes left behind.

    Also: the folder of a running run is refused. SIGKILL: the front end can do nothing more, but its child notices.
    """
    out = tmp_path / "one"
    process = start("hangs", out, TMPDIR=str(scratch))
    wait_for(lambda: (out / "pids").exists() and (out / "pids").read_text())
    pids = [int(pid) for pid in (out / "pids").read_text().split()]
    pids += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert all(is_running(pid) for pid in pids[:2])
    if number == signal.SIGINT:
        code, _, errors = finish(start("hangs", out))
        assert code == 2 and "another run is using it" in errors
    process.send_signal(number)
    code, _, errors = finish(process)
    if number == signal.SIGKILL:
        wait_for(lambda: not any(is_running(pid) for pid in pids))
        wait_for(lambda: list(scratch.iterdir()) == [])
        return
    assert code == 128 + number
    assert errors.startswith("gripline: interrupted") and errors.count("\n") == 1
    assert not any(is_running(pid) for pid in pids)
    assert list(scratch.iterdir()) == []

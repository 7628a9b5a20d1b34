"""The driver as a process of its own, with stages of a few lines, on a store that is a folder."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gripline.kube.guard import Freshness
from gripline.kube.jobfiles import Abandoned, Attempt, Heartbeat, JobFiles, Refusal, Request, Result, content_hash
from gripline.rollout.shares import Shares

WAIT_S = 40.0
STAGES = Path(__file__).parent
CODE = "import sys; from gripline.kube import driver, guard; guard.UNWIND_S = 0.5; sys.exit(driver.main(*sys.argv[1:]))"


class Job:
    """One job of one run, its launcher's side, and the drivers started for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_dir = str(folder / "run")
        self.files = JobFiles(self.run_dir, "rl")
        self.drivers: list[subprocess.Popen[str]] = []

    def request(self, stage: str, *, every_s: float = 0.1, orphan_after_s: float = 60.0, **changes: Any) -> None:
        """Ask for a stage, and give the first sign of life."""
        arguments = {"folder": str(self.folder)} | changes.pop("arguments", {})
        timing = {"heartbeat_every_s": every_s, "orphan_after_s": orphan_after_s}
        function = f"tiny_stages:{stage}"
        self.files.write(Request(launch="l", function=function, arguments=arguments, **timing, **changes))
        self.beat(0)

    def beat(self, count: int) -> None:
        self.files.write(Heartbeat(launcher="l", count=count, time_s=-count, rayjob="run-rl", rayjob_uid="uid-1"))

    def start(self, *, command: list[str] | None = None) -> "subprocess.Popen[str]":
        """A driver, as a RayJob would start it."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GRIPLINE_")}
        started = subprocess.Popen(
            [sys.executable, *(command or ["-m", "gripline.kube.driver"]), self.run_dir, "rl"],
            env=environment | {"PYTHONPATH": str(STAGES), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.drivers.append(started)
        return started

    def run(self) -> tuple[int, str, str]:
        """A driver from its start to its end: exit status, what it printed, and what it complained of."""
        driver = self.start()
        out, err = driver.communicate(timeout=WAIT_S)
        return driver.returncode, out, err

    def notes(self) -> list[str]:
        path = self.folder / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, self.notes()
            time.sleep(0.02)

    def left(self) -> set[str]:
        """The last words: result, error, abandoned."""
        last = {Result.file, Refusal.file, Abandoned.file}
        return {path.name for path in (self.folder / "run" / "jobs" / "rl").iterdir()} & last


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path)
    yield made
    for driver in made.drivers:
        driver.kill()
        driver.communicate()


def test_a_stage_gets_its_inputs_and_its_result_is_the_last_word(job: Job) -> None:
    words = job.folder / "words"
    words.write_text("hello ")
    job.files.upload(words, "in/words_path")
    job.request(
        "succeed",
        arguments={"word": "world"},
        files={"words_path": "in/words_path"},
        outputs={"results_path": "out/results_path"},
        shares=Shares(policy_gpus=0.5),
        tags={"kfp_run": "7"},
    )
    assert job.run()[0] == 0
    result, attempt = job.files.read(Result), job.files.read(Attempt)
    assert result is not None and attempt is not None and result.attempt == attempt.attempt
    assert result.outputs == {"uri": "memory://x", "steps": 3, "success": 0.5}
    out = job.files.download("out/results_path", job.folder / "fetched")
    assert out.read_text() == "hello world" and result.files == {"out/results_path": content_hash(out)}
    environment = json.loads((job.folder / "environment.json").read_text())
    assert json.loads(environment["GRIPLINE_RAY_SHARES"])["policy_gpus"] == 0.5
    assert json.loads(environment["GRIPLINE_TAGS"]) == {
        "kfp_run": "7",
        "gripline.attempt": attempt.attempt,
        "gripline.rayjob": "run-rl",
        "gripline.rayjob_uid": "uid-1",
    }
    assert job.left() == {Result.file}


def test_an_error_of_the_user_is_final_until_a_new_launch(job: Job) -> None:
    job.request("refuse")
    status, _, err = job.run()
    assert (status, err) == (2, "[rl] refused: rl: rl.lr: is too large; lower it\n")
    refusal = job.files.read(Refusal)
    assert refusal is not None and refusal.error.line == "rl: rl.lr: is too large; lower it"
    assert job.run()[0] == 2 and job.notes() == ["refuse"], "KubeRay's retry runs nothing"
    job.files.remove(Refusal)
    assert job.run()[0] == 2 and job.notes() == ["refuse"] * 2
    assert job.left() == {Refusal.file}


def test_a_crash_is_worth_a_retry(job: Job) -> None:
    job.request("crash")
    status, _, err = job.run()
    assert status == 1 and "ZeroDivisionError: a defect" in err and job.left() == set()
    assert job.run()[0] == 1 and job.notes() == ["crash"] * 2


def test_a_store_that_is_away_for_too_long_is_worth_a_retry(job: Job) -> None:
    """Catches: an outage that is recorded as the user's error, after which nobody tries again."""
    job.request("lose_the_store")
    assert job.run()[0::2] == (1, "gripline: s3://b/x: does not answer; later\n") and job.left() == set()


@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        (lambda job: None, "request.json: is missing"),
        (lambda job: job.request("no_such_stage"), "tiny_stages:no_such_stage: is not in this image"),
        (lambda job: job.request("succeed", files={"words_path": "in/none"}), "in/none: is missing"),
    ],
)
def test_what_cannot_begin_is_one_line(job: Job, prepare: Callable[[Job], None], told: str) -> None:
    prepare(job)
    status, _, err = job.run()
    assert status == 2 and told in err and err.count("\n") == 1


def test_the_next_attempt_continues_where_a_killed_one_stopped(job: Job) -> None:
    job.request("count", arguments={"until": "60"})
    first = job.start()
    job.wait_for(lambda: "step 25" in job.notes())
    first.kill()
    first.communicate()
    former = job.files.read(Attempt)
    assert job.run()[0] == 0
    result = job.files.read(Result)
    assert result is not None and result.outputs["first"] >= 20 and former is not None
    assert result.attempt != former.attempt


@pytest.mark.parametrize("stage", ["hang", "hang_stubbornly"])
def test_a_superseded_attempt_ends_itself_and_leaves_nothing(job: Job, stage: str) -> None:
    """Catches: two attempts that write one run; a retry that KubeRay makes of the one that gave way."""
    job.request(stage)
    driver = job.start(command=["-c", CODE])
    job.wait_for(lambda: job.notes() == ["hang"])
    job.files.write(Attempt(attempt="newer", time_s=0.0))
    out, _ = driver.communicate(timeout=WAIT_S)
    assert driver.returncode == 0 and job.left() == set()
    if stage == "hang":
        assert job.notes() == ["hang", "unwound"] and "a newer attempt owns the run now" in out
    assert job.files.read(Attempt) == Attempt(attempt="newer", time_s=0.0)


def test_the_second_of_two_drivers_wins(job: Job) -> None:
    job.request("count", arguments={"until": "120"})
    first = job.start()
    job.wait_for(lambda: "step 12" in job.notes())
    second = job.start()
    assert first.wait(WAIT_S) == 0 and second.wait(WAIT_S) == 0
    result, attempt = job.files.read(Result), job.files.read(Attempt)
    assert result is not None and attempt is not None and result.attempt == attempt.attempt
    assert result.outputs["steps"] == 120


def test_a_superseded_attempt_writes_no_checkpoint_even_before_it_noticed(job: Job) -> None:
    """The fence: its own thread looks only every few seconds."""
    job.request("push_on_demand", every_s=1000.0, orphan_after_s=5000.0, arguments={"run_dir": job.run_dir})
    driver = job.start()
    job.wait_for(lambda: job.notes() == ["waits"])
    job.files.write(Attempt(attempt="newer", time_s=0.0))
    (job.folder / "push").touch()
    out, _ = driver.communicate(timeout=WAIT_S)
    assert driver.returncode == 0 and "attempt newer owns the run now" in out
    assert job.notes() == ["waits"] and not (job.folder / "run" / "rl").exists() and job.left() == set()


def test_a_driver_without_launcher_writes_a_checkpoint_and_ends(job: Job) -> None:
    job.request("count", orphan_after_s=1.0, arguments={"until": "100000"})
    status, out, _ = job.run()
    abandoned = job.files.read(Abandoned)
    assert status == 0 and abandoned is not None and job.left() == {Abandoned.file}
    assert "no sign of life" in abandoned.reason and abandoned.reason in out
    last = int(job.notes()[-1].split()[1])
    assert int((job.folder / "state").read_text()) == last + 1, "the checkpoint holds the last step"
    assert abandoned.attempt == job.files.read(Attempt).attempt  # type: ignore[union-attr]


def test_heartbeats_keep_it_alive_whatever_time_they_say(job: Job) -> None:
    job.request("count", orphan_after_s=1.0, arguments={"until": "150"})
    driver = job.start()
    beats = 0
    while driver.poll() is None:
        beats += 1
        job.beat(beats)  # its clock runs backwards
        time.sleep(0.2)
    assert driver.returncode == 0 and job.left() == {Result.file}


def test_a_store_that_cannot_be_read_makes_no_orphan(job: Job) -> None:
    """Catches: an outage of the store that ends every job on the cluster."""
    job.request("count", orphan_after_s=0.6, arguments={"until": "100000"})
    heartbeat = job.folder / "run" / "jobs" / "rl" / Heartbeat.file
    driver, beats = job.start(), iter(range(10_000))
    job.wait_for(lambda: job.beat(next(beats)) or "step 1" in job.notes())
    heartbeat.unlink()
    heartbeat.mkdir()
    time.sleep(2.0)
    assert driver.poll() is None, "it could not read for three times as long"
    heartbeat.rmdir()
    back_s = time.monotonic()
    job.beat(1)
    assert driver.wait(WAIT_S) == 0 and time.monotonic() - back_s >= 0.6
    assert job.left() == {Abandoned.file}


def test_a_stage_that_reaches_no_boundary_is_ended_all_the_same(job: Job) -> None:
    job.request("hang_stubbornly", orphan_after_s=0.6)
    status, out, _ = job.run()
    abandoned = job.files.read(Abandoned)
    assert status == 0 and abandoned is not None and "reached no boundary within" in abandoned.reason
    assert abandoned.reason in out


def test_a_driver_that_is_told_to_end_ends(job: Job) -> None:
    """Catches: a handler of ours that outlives the pod's grace period."""
    job.request("hang")
    driver = job.start()
    job.wait_for(lambda: job.notes() == ["hang"])
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(WAIT_S) == -signal.SIGTERM


def test_the_command_says_how_it_is_used() -> None:
    done = subprocess.run([sys.executable, "-m", "gripline.kube.driver"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "usage: python -m gripline.kube.driver RUN_DIR JOB\n")


LOOKS = st.lists(st.tuples(st.floats(0.01, 100), st.sampled_from(["same", "new", "unreadable"])), max_size=40)


@given(LOOKS)
def test_age_counts_from_the_last_change_or_failure(looks: list[tuple[float, str]]) -> None:
    """Against the plain definition: the length of the unbroken run of equal, successful reads."""
    freshness = Freshness()
    now_s, content, since_s = 0.0, 0, None
    for pause_s, seen in looks:
        now_s += pause_s
        if seen == "unreadable":
            freshness.unreadable()
            since_s = None
            continue
        if seen == "new":
            content += 1
            since_s = None
        since_s = now_s if since_s is None else since_s
        assert freshness.seen(content, now_s) == pytest.approx(now_s - since_s)

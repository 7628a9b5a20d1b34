"""What ends a job whose launcher is gone, one safety net at a time with the others off; all of them at once, for time.

The step's own clean-up: test_lifecycle, `terminate`. `benchmarks/launcher.py` kills by the hundred, at random times.
"""

import time

import pytest
from cluster.site import Site, Step, nothing

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

OFF_S = 100_000.0
ORPHAN_AFTER_S = 8.0
NETS = {
    "clean-up": {"orphan_after_s": OFF_S},
    "heartbeat": {"orphan_after_s": ORPHAN_AFTER_S},
    "deadline": {"orphan_after_s": OFF_S, "start_timeout_s": 30, "attempt_timeout_s": 60},
    "none": {"orphan_after_s": OFF_S},
}


@pytest.mark.slow
def test_each_net_alone(site: Site) -> None:
    """Catches: a net that only works together with another; and, by `none`, a test that could not fail."""
    steps: dict[str, Step] = {}
    for name, net in NETS.items():
        steps[name] = site.launch([["wait", OFF_S]], name=name, cluster=net)
        steps[name].until_running()
    steps["clean-up"].terminate(then_kill_after_s=0.5)
    for name in ("heartbeat", "deadline", "none"):
        steps[name].kill()
    _end(site, steps["clean-up"], 10)
    assert site.running(steps["heartbeat"]), "it ended by something else"
    _end(site, steps["heartbeat"], 40)
    assert site.running(steps["deadline"]), "it ended by something else"
    _end(site, steps["deadline"], 80)
    assert site.status(steps["deadline"])["reason"] == "DeadlineExceeded"
    assert (steps["heartbeat"].run_path / "played" / "stopped").exists(), "no checkpoint before the end"
    assert not (steps["deadline"].run_path / "played" / "stopped").exists()
    assert [line for line in site.running(steps["none"]) if line.startswith("driver")], "nothing was to end this one"


def _end(site: Site, step: Step, timeout_s: float) -> None:
    nothing(lambda: site.running(step), f"what {step.run_name} started", timeout_s)


def test_a_store_that_cannot_be_read_is_no_lost_launcher(site: Site) -> None:
    """Catches: an outage of the store, longer than orphan_after_s, that ends every job."""
    step = site.launch([["wait", 25]], cluster={"orphan_after_s": 5.0})
    step.until_running()
    folder = step.run_path / "jobs"
    hidden = folder.with_name("jobs-away")
    folder.rename(hidden)
    folder.write_text("no folder: whoever opens a file below fails")
    time.sleep(12)
    folder.unlink()
    hidden.rename(folder)
    assert step.wait() == 0, step.log
    assert step.attempts() == 1


def test_a_job_that_gave_up_is_continued_by_the_next_launcher(site: Site) -> None:
    """The next try of the same step finds `abandoned`, and starts from the last checkpoint."""
    step = site.launch([["wait", OFF_S]], [["wait", 1]], cluster={"orphan_after_s": 5.0})
    step.until_running()
    step.kill()
    nothing(site.running, "the abandoned job")
    second = site.launch([["wait", OFF_S]], [["wait", 1]], cluster={"orphan_after_s": 5.0})
    assert second.wait() == 0, second.log
    assert second.attempts() == 2
    nothing(site.left, "both")

"""The driver as a job that was submitted to a Ray cluster of two machines, as KubeRay's operator submits it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gripline.kube.jobfiles import Heartbeat, JobFiles, Request, Result

SUBMIT = """
import os, socket, sys, time
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient

def agent():
    # Ray's own choice is one port for all, which another cluster on this machine may have.
    with socket.socket() as free:
        free.bind(("", 0))
        return {"dashboard_agent_listen_port": free.getsockname()[1]}

head = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": 0, "resources": {"learner": 1, "policy": 1}}
cluster = Cluster(initialize_head=True, head_node_args=head | agent())
cluster.add_node(num_cpus=1, resources={"env": 2}, **agent())
client = JobSubmissionClient("http://" + cluster.head_node.webui_url.removeprefix("http://"))
job, give_up_s = None, time.monotonic() + 60
while job is None:
    try:
        job = client.submit_job(entrypoint=f"{sys.executable} -m gripline.kube.driver {sys.argv[1]} rl")
    except RuntimeError as error:  # machines report to the dashboard a while after they have started
        if "No available agent" not in str(error) or time.monotonic() > give_up_s:
            raise
        time.sleep(0.5)
while not client.get_job_status(job).is_terminal():
    time.sleep(0.5)
print(client.get_job_status(job), client.get_job_logs(job)[-3000:])
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_submitted_driver_joins_the_cluster_that_it_was_submitted_to(tmp_path: Path) -> None:
    """Catches: a driver that starts a Ray cluster of its own in the head pod, without one GPU."""
    files = JobFiles(str(tmp_path), "rl")
    timing = {"heartbeat_every_s": 5.0, "orphan_after_s": 600.0}
    arguments = {"folder": str(tmp_path)}
    files.write(Request(launch="l", function="tiny_stages:count_machines", arguments=arguments, **timing))
    files.write(Heartbeat(launcher="l", count=0, time_s=time.time()))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(Path(__file__).parent), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SUBMIT, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=170
    )
    result = files.read(Result)
    assert result is not None, done.stdout[-3000:] + done.stderr[-3000:]
    assert result.outputs == {"machines": 2, "env": 2.0}

"""Names, labels and annotations of what gripline makes in a cluster, by which its pieces find each other."""

import hashlib
import re

MAX_RAYJOB_NAME = 47
"""KubeRay appends 6 characters for the RayCluster and up to 10 for its services, whose names end at 63."""
MAX_LABEL_VALUE = 63

RAY_CONTAINER = "ray"
"""The first container of every pod, in which KubeRay starts Ray."""
LOG_CONTAINER = "driver-log"
"""In the driver's pod: its log is the driver's log, and nothing else."""

NAME_LABEL = "app.kubernetes.io/name"
MANAGED_LABEL = "app.kubernetes.io/managed-by"
RUN_LABEL = "gripline.io/run"
JOB_LABEL = "gripline.io/job"
ROLE_LABEL = "gripline.io/role"
"""On pods: the profile's section that they are rendered from, cluster.head, cluster.policy or cluster.env."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

RUN_DIR_ANNOTATION = "gripline.io/run-dir"
SPEC_HASH_ANNOTATION = "gripline.io/spec-hash"
ORPHAN_ANNOTATION = "gripline.io/orphan-after-s"


def rayjob_name(run_dir: str, run_name: str, job: str) -> str:
    """The name of a run's RayJob for `job` ('rl', …): the same at every launch, and another for every run directory.

    A DNS-1035 label of at most 47 characters, such as 'laptop-3-rl-1f0c9a2b'.
    """
    digest = hashlib.sha256(f"{run_dir.rstrip('/')}\n{job}".encode()).hexdigest()
    tail = f"-{job}-{digest[:8]}"
    return slug(run_name)[: MAX_RAYJOB_NAME - len(tail)].rstrip("-") + tail


def slug(text: str) -> str:
    """`text` as a DNS-1035 label, which is a label value too: 'My run (2)' → 'my-run-2', '7b' → 'run-7b'."""
    dashed = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not re.match("[a-z]", dashed):
        dashed = f"run-{dashed}"
    return dashed[:MAX_LABEL_VALUE].rstrip("-")


def labels(run_name: str, job: str) -> dict[str, str]:
    """On the RayJob, from where KubeRay copies them to the RayCluster, and on every pod."""
    return {
        NAME_LABEL: "gripline",
        MANAGED_LABEL: "gripline",
        RUN_LABEL: slug(run_name),
        JOB_LABEL: job,
    }

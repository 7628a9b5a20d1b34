"""`gripline reap`: RayJobs that nobody waits for any more, and RayClusters without a RayJob; deletes them if told to.

The last of three nets (docs/decisions/0025), thrown by a person or a cron job.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from gripline.errors import UserError
from gripline.kube.api import ApiError, Cluster, ConflictError, ForbiddenError, NoSuchKindError, NotFoundError, Object
from gripline.kube.creation import FINAL
from gripline.kube.jobfiles import Heartbeat, JobFiles
from gripline.kube.names import JOB_LABEL, MANAGED_LABEL, ORPHAN_ANNOTATION, RUN_DIR_ANNOTATION
from gripline.kube.surroundings import INSTALL_KUBERAY
from gripline.store import is_local, local_path

OURS = f"{MANAGED_LABEL}=gripline"
HEARTBEATS_UNTIL_ORPHANED = 5
"""At least, says the schema."""
GRACE_S = 300.0
"""What an operator and a launcher may take for what is due."""
STORE_PATIENCE_S = 5.0
WORKFLOW_ENDED = ("Succeeded", "Failed", "Error")
Read = Callable[[str, str], Heartbeat | None]
"""(run directory, job) -> its heartbeat. Raises UserError where the store cannot be read."""


@dataclass(frozen=True)
class Found:
    """One object, and what is to be thought of it."""

    kind: Literal["RayJob", "RayCluster"]
    name: str
    uid: str
    status: str
    age_s: float
    verdict: str
    is_orphan: bool = False
    beat: Heartbeat | None = None
    run_dir: str = ""
    job: str = ""
    orphan_after_s: float = 0.0


def read_heartbeat(run_dir: str, job: str) -> Heartbeat | None:
    """From the store that the RayJob names."""
    return JobFiles(run_dir, job, patience_s=STORE_PATIENCE_S).read(Heartbeat)


def reap(
    cluster: Cluster,
    *,
    delete: bool,
    read: Read = read_heartbeat,
    wall: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Print a table. Returns 0 if nothing is left over in the end, else 1. Raises UserError."""
    try:
        found = [*_rayjobs(cluster, read, wall()), *_rayclusters(cluster, wall())]
    except ForbiddenError as error:
        raise error.for_user() from None
    except NoSuchKindError as error:
        raise UserError("cluster", "", f"knows no RayJobs ({error})", INSTALL_KUBERAY) from None
    except ApiError as error:
        raise UserError("cluster", "", f"does not answer: {error}", "check with: kubectl get rayjobs") from None
    _print(found)
    orphans = [each for each in found if each.is_orphan]
    if not orphans:
        print(f"nothing to reap in namespace {cluster.namespace}")
        return 0
    if not delete:
        print(f"{len(orphans)} to reap in namespace {cluster.namespace}; --yes deletes them")
        return 1
    _wait_for_heartbeats(orphans, sleep)
    done = [_is_alive(each, read) or _deleted(cluster, each) for each in orphans]
    return 0 if all(done) else 1


def _rayjobs(cluster: Cluster, read: Read, now_s: float) -> Iterator[Found]:
    for rayjob in cluster.rayjobs(OURS):
        metadata, status = rayjob["metadata"], rayjob.get("status", {})
        beat, unreadable = _heartbeat(metadata, read)
        orphan_after_s = float(metadata.get("annotations", {}).get(ORPHAN_ANNOTATION, 0.0))
        verdict, is_orphan = _judge(cluster, rayjob, beat, unreadable, now_s)
        yield Found(
            kind="RayJob",
            name=metadata["name"],
            uid=metadata["uid"],
            status=status.get("jobDeploymentStatus") or "new",
            age_s=now_s - _seconds(metadata["creationTimestamp"]),
            verdict=verdict,
            is_orphan=is_orphan,
            beat=beat,
            run_dir=metadata.get("annotations", {}).get(RUN_DIR_ANNOTATION, ""),
            job=metadata["labels"].get(JOB_LABEL, ""),
            orphan_after_s=orphan_after_s,
        )


def _heartbeat(metadata: Object, read: Read) -> tuple[Heartbeat | None, str]:
    """(the heartbeat, why it cannot be read)."""
    run_dir = metadata.get("annotations", {}).get(RUN_DIR_ANNOTATION, "")
    if not run_dir:
        return None, "it names no store"
    if is_local(run_dir) and not local_path(run_dir).exists():
        return None, f"{run_dir} is a folder of another machine"
    try:
        return read(run_dir, metadata["labels"].get(JOB_LABEL, "")), ""
    except UserError as error:
        return None, error.line


def _judge(cluster: Cluster, rayjob: Object, beat: Heartbeat | None, unreadable: str, now_s: float) -> tuple[str, bool]:
    """(what is to be thought of it, whether it is to be deleted)."""
    metadata, status = rayjob["metadata"], rayjob.get("status", {})
    if "deletionTimestamp" in metadata:
        since_s = now_s - _seconds(metadata["deletionTimestamp"])
        stuck = "; does KubeRay's operator run?" if since_s > GRACE_S else ""
        return f"being deleted for {_shown(since_s)}{stuck}", False
    orphan_after_s = float(metadata.get("annotations", {}).get(ORPHAN_ANNOTATION, 0.0))
    silent_s = now_s - (beat.time_s if beat is not None else _seconds(metadata["creationTimestamp"]))
    if not unreadable and silent_s < orphan_after_s:
        return f"at work, heartbeat {_shown(silent_s)} ago" if beat is not None else "new, no heartbeat yet", False
    if status.get("jobDeploymentStatus", "") in FINAL:
        ended_s = now_s - _seconds(status.get("endTime", metadata["creationTimestamp"]))
        return f"finished {_shown(ended_s)} ago, nobody waits for it", ended_s > GRACE_S
    owner = _ended_owner(cluster, metadata)
    if owner:
        return owner, True
    deadline_s = rayjob["spec"].get("activeDeadlineSeconds")
    if deadline_s is not None and "startTime" in status:
        over_s = now_s - _seconds(status["startTime"]) - deadline_s
        if over_s > GRACE_S:
            return f"past its deadline for {_shown(over_s)}; does KubeRay's operator run?", True
    if unreadable:
        return f"not known: {unreadable}", False
    return f"no heartbeat for {_shown(silent_s)}", True


def _ended_owner(cluster: Cluster, metadata: Object) -> str:
    """Why its owner does not need it any more; empty: it may."""
    for owner in metadata.get("ownerReferences", []):
        what = f"{owner['kind']} {owner['name']}"
        try:
            if owner["kind"] == "Workflow":
                found = cluster.workflow(owner["name"])
                ended = found.get("status", {}).get("phase", "") in WORKFLOW_ENDED
            elif owner["kind"] == "Pod":
                found = cluster.pod(owner["name"])
                ended = found.get("status", {}).get("phase", "") in ("Succeeded", "Failed")
            else:
                continue
        except (NotFoundError, NoSuchKindError):
            return f"its {what} is gone"
        except ApiError:
            continue  # then the heartbeat decides
        if ended or found["metadata"]["uid"] != owner["uid"]:
            return f"its {what} has ended"
    return ""


def _rayclusters(cluster: Cluster, now_s: float) -> Iterator[Found]:
    rayjobs = {each["metadata"]["uid"] for each in cluster.rayjobs(OURS)}
    for raycluster in cluster.rayclusters(OURS):
        metadata = raycluster["metadata"]
        owners = {owner["uid"] for owner in metadata.get("ownerReferences", [])}
        if owners & rayjobs or "deletionTimestamp" in metadata:
            continue
        age_s = now_s - _seconds(metadata["creationTimestamp"])
        state = raycluster.get("status", {}).get("state") or "new"
        yield Found("RayCluster", metadata["name"], metadata["uid"], state, age_s, "without a RayJob", True)


def _wait_for_heartbeats(orphans: Sequence[Found], sleep: Callable[[float], None]) -> None:
    """Clocks of two machines may differ, but a heartbeat that moves is alive: wait for as long as one may take."""
    periods_s = [each.orphan_after_s / HEARTBEATS_UNTIL_ORPHANED for each in orphans if each.beat is not None]
    if periods_s:
        print(f"looking for new heartbeats for {max(periods_s):g} s", flush=True)
        sleep(max(periods_s))


def _is_alive(found: Found, read: Read) -> bool:
    """Whether its heartbeat moved meanwhile. One that cannot be read any more did not."""
    if found.beat is None:
        return False
    try:
        alive = read(found.run_dir, found.job) != found.beat
    except UserError as error:
        print(f"{found.kind} {found.name}: {error.line}")
        return False
    if alive:
        print(f"{found.kind} {found.name}: left, it has a new heartbeat")
    return alive


def _deleted(cluster: Cluster, found: Found) -> bool:
    delete = cluster.delete_rayjob if found.kind == "RayJob" else cluster.delete_raycluster
    try:
        delete(found.name, found.uid)
    except (NotFoundError, ConflictError):
        pass  # gone by itself
    except ApiError as error:
        print(f"{found.kind} {found.name}: cannot be deleted: {error}")
        return False
    print(f"{found.kind} {found.name}: deleted")
    return True


def _print(found: Sequence[Found]) -> None:
    rows = [("", "KIND", "NAME", "STATUS", "AGE", "")]
    for each in found:
        mark = "✗" if each.is_orphan else "–" if each.verdict.startswith("not known") else "✓"
        rows.append((mark, each.kind, each.name, each.status, _shown(each.age_s), each.verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows if found else []:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]).rstrip())


def _shown(seconds: float) -> str:
    """Example: 90061 → 1d1h."""
    minutes = max(int(seconds), 0) // 60
    if minutes < 2:
        return f"{max(int(seconds), 0)}s"
    if minutes < 120:
        return f"{minutes}m"
    return f"{minutes // 60}h{minutes % 60}m" if minutes < 2880 else f"{minutes // 1440}d{minutes // 60 % 24}h"


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()

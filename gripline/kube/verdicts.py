"""What the end of a wait means for the person who started the stage, and what is said on the way."""

from collections.abc import Mapping

from gripline.checkpoint import MANIFEST_FILE, file_hash
from gripline.cluster_config import ClusterConfig
from gripline.errors import UserError
from gripline.kube.watch import Outcome, Seen
from gripline.object_store import StoreOutageError
from gripline.store import read_once

CONTINUES = "start the same run again: it continues from its last checkpoint"


class StageFailedError(Exception):
    """The driver broke, or left something that does not hold: ours to mend. One line; the traceback is in its log."""


def phase_text(seen: Seen, cluster: ClusterConfig) -> str:
    """One line about what is going on; empty: nothing to say."""
    attempt = seen.failures + 1
    match seen.phase:
        case "queued":
            return f"waiting for quota in Kueue's queue {cluster.queue}" if cluster.queue else "suspended"
        case "starting":
            return f"attempt {attempt}: waiting for the pods of RayCluster {seen.ray_cluster}"
        case "running":
            return f"attempt {attempt}: the driver runs"
        case "retrying":
            return f"attempt {max(seen.failures, 1)} failed ({_cause(seen)}); another follows"
        case "unreachable":
            return f"the Kubernetes API does not answer ({seen.message}); the job goes on meanwhile"
    return ""


def failure(seen: Seen, where: str, cluster: ClusterConfig, namespace: str) -> Exception:
    """For every outcome but success: a UserError for what a person did or can mend, else a StageFailedError."""
    match seen.outcome:
        case Outcome.FAILED:
            return _failed(seen, where, cluster)
        case Outcome.STOPPED:
            problem, next_step = "was stopped, as by `ray job stop`", CONTINUES
        case Outcome.INVALID:
            problem, next_step = f"was refused by KubeRay: {_short(seen.message)}", "is its operator of version 1.7?"
        case Outcome.DELETED:
            problem, next_step = "was deleted by someone else", CONTINUES
        case Outcome.REPLACED:
            problem, next_step = "was deleted and made anew by someone else", CONTINUES
        case Outcome.TAKEN_OVER:
            problem, next_step = "is waited for by another launcher, started later", "see that one"
        case Outcome.NO_OPERATOR:
            problem = "stays without a status: no KubeRay operator is running, or none that watches this namespace"
            next_step = "kubectl get pods -A -l app.kubernetes.io/name=kuberay-operator"
        case Outcome.QUEUED_TOO_LONG:
            problem = f"was not admitted within {cluster.queue_timeout_s} s"
            queues = f"kubectl -n {namespace} describe workloads.kueue.x-k8s.io"
            return UserError(where, "cluster.queue_timeout_s", problem, f"raise it, or see `{queues}`")
        case Outcome.FORBIDDEN:
            problem, next_step = f"may not be watched any more: {_short(seen.message)}", "give the rights back"
        case _:
            problem = f"cannot be watched: the Kubernetes API does not answer ({_short(seen.message)})"
            next_step = CONTINUES
    return UserError(where, "", problem, next_step)


def _failed(seen: Seen, where: str, cluster: ClusterConfig) -> Exception:
    match seen.reason:
        case "DeadlineExceeded":
            problem = f"an attempt did not end within {cluster.attempt_timeout_s} s"
            return UserError(where, "cluster.attempt_timeout_s", problem, f"raise it, and {CONTINUES}")
        case "PreRunningDeadlineExceeded":
            problem = f"its pods were not all ready within {cluster.start_timeout_s} s"
            next_step = "see the warnings above; raise it where images are large or nodes are made on demand"
            return UserError(where, "cluster.start_timeout_s", problem, next_step)
        case "JobStatusCheckTimeoutExceeded":
            problem = f"KubeRay's operator cannot reach the head pod: {_short(seen.message)}"
            return UserError(where, "", problem, "let the operator's namespace in on port 8265 (NetworkPolicy)")
    return StageFailedError(f"{where}: failed in its last attempt ({_cause(seen)}); the driver's log is above")


def check_checkpoint(outputs: Mapping[str, object]) -> None:
    """A checkpoint among the outputs is in the store, and is the one that the driver wrote.

    Raises StageFailedError if not, StoreOutageError where the store does not answer for minutes.
    """
    if "uri" not in outputs or "hash" not in outputs:
        return
    manifest = f"{str(outputs['uri']).rstrip('/')}/{MANIFEST_FILE}"
    try:
        with read_once(manifest) as path:
            found = file_hash(path)
    except StoreOutageError:
        raise
    except UserError as error:
        raise StageFailedError(f"the driver reported a checkpoint, but {error.line}") from None
    if found != outputs["hash"]:
        raise StageFailedError(f"{manifest}: is not the one that the driver reported")


def _cause(seen: Seen) -> str:
    return ": ".join(part for part in (seen.reason, _short(seen.message)) if part) or "KubeRay names no reason"


def _short(message: str) -> str:
    """Ray puts the end of the driver's log into it, which was shown already."""
    return " ".join(message.partition(", last available logs")[0].split())[:300]

"""Create a RayJob, or adopt the one that an earlier launcher of the same job left."""

from collections.abc import Callable
from typing import TypeVar

from gripline.errors import UserError
from gripline.kube.api import ConflictError, NotFoundError, Object, RefusedError
from gripline.kube.jobfiles import Abandoned, Refusal, Request, Result
from gripline.kube.names import SPEC_HASH_ANNOTATION
from gripline.kube.surroundings import Surroundings
from gripline.kube.termination import Termination
from gripline.kube.watch import LAUNCHER_ANNOTATION

REQUEST_ANNOTATION = "gripline.io/request"
"""On a RayJob: hash of what its driver is asked to do. Only the same is adopted."""
GONE_TIMEOUT_S = 120.0
"""For so long a RayJob that is being deleted may take to go."""
LOOK_AGAIN_S = 0.5
FINAL = ("Complete", "Failed", "ValidationFailed")
Answer = TypeVar("Answer")


class Creation:
    """One manifest, brought to the cluster, and the request to its driver.

    Nothing is written while another job with the same files is at work. What an earlier attempt left there is removed
    before a creation only: beside a job that is there, it is what this job's driver said.
    """

    def __init__(self, manifest: Object, request: Request, around: Surroundings, termination: Termination) -> None:
        """manifest: with the launcher's and the request's annotations."""
        self._manifest, self._request, self._around, self._termination = manifest, request, around, termination
        self._cluster, self._files = around.cluster, around.files
        self._name = str(manifest["metadata"]["name"])
        self._where = f"RayJob {self._cluster.namespace}/{self._name}"

    def create_or_adopt(self, *, result_is_there: bool) -> tuple[Object | None, bool]:
        """(the RayJob, whether it was there already); it is None if there is none and the result is there.

        Raises UserError.
        """
        clock = self._around.clock
        give_up_s = clock() + GONE_TIMEOUT_S
        while clock() < give_up_s:
            existing = self._around.patiently(self._existing)
            if existing is None:
                if result_is_there:
                    return None, False
                created = self._create()
                if created is not None:
                    return created, False
            elif "deletionTimestamp" not in existing["metadata"]:
                adopted = self._adopt_or_delete(existing)
                if adopted is not None:
                    return adopted, True
            self._around.sleep(LOOK_AGAIN_S)
        problem = f"is still being deleted after {GONE_TIMEOUT_S:g} s, as if no operator removed its finalizer"
        raise UserError(self._where, "", problem, "see whether KubeRay's operator runs, then start this again")

    def _existing(self) -> Object | None:
        try:
            return self._cluster.rayjob(self._name)
        except NotFoundError:
            return None

    def _create(self) -> Object | None:
        """None where another was faster, or where the first of two tries had succeeded without an answer."""
        self._files.remove(Result, Refusal, Abandoned)
        self._files.write(self._request)
        self._termination.covers(self._name)
        self._termination.creating = True
        try:
            return self._around.patiently(lambda: self._cluster.create_rayjob(self._manifest))
        except ConflictError:
            return None
        except (RefusedError, NotFoundError) as error:
            raise UserError(self._where, "", f"was refused: {error}", "correct the profile's `cluster`") from None
        finally:
            self._termination.creating = False

    def _adopt_or_delete(self, existing: Object) -> Object | None:
        """The one that was there, if it does what is wanted; None after the deletion of a finished one.

        Raises UserError where another is at work.
        """
        ours, theirs = self._manifest["metadata"]["annotations"], existing["metadata"].get("annotations", {})
        same = all(theirs.get(name) == ours[name] for name in (SPEC_HASH_ANNOTATION, REQUEST_ANNOTATION))
        deployment = existing.get("status", {}).get("jobDeploymentStatus", "")
        if deployment in FINAL and not (same and deployment == "Complete" and self._files.read(Result) is not None):
            self._unless_gone(lambda: self._cluster.delete_rayjob(self._name, existing["metadata"]["uid"]))
            return None
        if not same:
            delete = f"kubectl -n {self._cluster.namespace} delete rayjob {self._name}"
            problem = "is at work with another `cluster` section, image or input"
            raise UserError(self._where, "", problem, f"wait for it, or end it with `{delete}` and start this again")
        adopted = self._unless_gone(lambda: self._adopt(existing))
        if adopted is not None:
            self._files.write(self._request)  # the same, of this launch
        return adopted

    def _adopt(self, existing: Object) -> Object:
        """Tell an earlier launcher, if it still lives, that this one waits now; own the job as if this had made it."""
        ours = self._manifest["metadata"]
        metadata: Object = {"uid": existing["metadata"]["uid"]}  # a conflict if it is another one by now
        metadata["annotations"] = {LAUNCHER_ANNOTATION: ours["annotations"][LAUNCHER_ANNOTATION]}
        if "ownerReferences" in ours:
            metadata["ownerReferences"] = ours["ownerReferences"]
        self._termination.covers(self._name)
        return self._cluster.patch_rayjob(self._name, {"metadata": metadata})

    def _unless_gone(self, call: Callable[[], Answer]) -> Answer | None:
        try:
            return self._around.patiently(call)
        except (NotFoundError, ConflictError):
            return None

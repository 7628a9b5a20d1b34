"""Which pod this process runs in, and what a RayJob that it launches should go with."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from gripline.kube.api import ApiError, Cluster, NotFoundError, in_a_pod, own_namespace

NAME_VARIABLES = ("KFP_POD_NAME", "POD_NAME")
"""The former is set by Kubeflow; the latter is the usual name for one's own `fieldRef: metadata.name`."""

RUN_ID_LABEL = "pipeline/runid"
"""Of Kubeflow, on every pod of a pipeline's run."""


@dataclass(frozen=True)
class OwnPod:
    """Empty outside of a cluster."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    workflow: Mapping[str, str] = field(default_factory=dict)
    """Owner reference to the pipeline's run, where the pod belongs to one."""
    run_id: str = ""
    """Kubeflow's, of the pipeline's run."""

    @property
    def tags(self) -> dict[str, str]:
        """What tells in MLflow where the stage was launched from."""
        tags = {"gripline.workflow": self.workflow.get("name", ""), "gripline.kfp_run_id": self.run_id}
        return {name: value for name, value in tags.items() if value}

    def owner(self, namespace: str) -> dict[str, str] | None:
        """Reference for a RayJob in `namespace`: to the pipeline's run, else to this pod; owners are of one namespace.

        Within a pipeline never the pod: it is replaced when it is lost, and its RayJob must outlive it.
        """
        if not self.name or namespace != self.namespace:
            return None
        pod = {"apiVersion": "v1", "kind": "Pod", "name": self.name, "uid": self.uid}
        return dict(self.workflow) or pod

    def is_replaced(self, cluster: Cluster) -> bool:
        """Whether it was deleted or evicted, and not the work ended. cluster: of any namespace."""
        if not self.name:
            return False
        try:
            return "deletionTimestamp" in cluster.within(self.namespace).pod(self.name)["metadata"]
        except NotFoundError:
            return True
        except ApiError:
            return False


def find_own_pod(cluster: Cluster) -> OwnPod:
    """Ask the cluster for it. Raises ApiError; a pod that does not exist (a node's host name, say) is none."""
    named = [os.environ[variable] for variable in NAME_VARIABLES if os.environ.get(variable)]
    name = named[0] if named else socket.gethostname() if in_a_pod() else ""
    namespace = own_namespace() or cluster.namespace
    if not name:
        return OwnPod()
    try:
        metadata = cluster.within(namespace).pod(name)["metadata"]
    except NotFoundError:
        return OwnPod()
    workflows = [
        {key: str(owner[key]) for key in ("apiVersion", "kind", "name", "uid")}
        for owner in metadata.get("ownerReferences", [])
        if owner["kind"] == "Workflow"
    ]
    run_id = str(metadata.get("labels", {}).get(RUN_ID_LABEL, ""))
    return OwnPod(name, namespace, metadata["uid"], workflows[0] if workflows else {}, run_id)

"""What a launcher works with, so that tests can put another in its place; and how it bears with the API server."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from gripline import progress
from gripline.errors import UserError
from gripline.kube.api import Cluster, ForbiddenError, NoSuchKindError, UnavailableError
from gripline.kube.jobfiles import JobFiles
from gripline.kube.own_pod import OwnPod
from gripline.kube.watch import UNAVAILABLE_BUDGET_S

INSTALL_KUBERAY = "install KubeRay's operator, which brings them (docs/on_a_cluster.md)"
RETRY_S = 2.0
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Surroundings:
    """The real ones, but for what is given."""

    cluster: Cluster
    emergency: Cluster
    """A connection of its own with short timeouts, for the SIGTERM handler."""
    files: JobFiles
    hasty_files: JobFiles
    """The same files, without patience: for what is tried again anyway."""
    own_pod: OwnPod = field(default_factory=OwnPod)
    log_line: Callable[[str], None] = progress.relay
    """Takes a line of the driver's log."""
    warn: Callable[[str], None] = print
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    wall: Callable[[], float] = time.time

    def patiently(self, call: Callable[[], Answer]) -> Answer:
        """What `call` returns, once the API server answers.

        Raises UserError where waiting did not help or a right is missing; NotFound-, Conflict- or RefusedError.
        """
        give_up_s, told = self.clock() + UNAVAILABLE_BUDGET_S, False
        while True:
            try:
                return call()
            except ForbiddenError as error:
                raise error.for_user() from None
            except NoSuchKindError as error:
                raise UserError("cluster", "", f"knows no RayJobs ({error})", INSTALL_KUBERAY) from None
            except UnavailableError as error:
                if self.clock() >= give_up_s:
                    problem = f"the Kubernetes API does not answer: {error}"
                    raise UserError("cluster", "", problem, "see that it runs, and start this again") from None
                if not told:
                    self.warn(f"the Kubernetes API does not answer ({error}); trying for {UNAVAILABLE_BUDGET_S:g} s")
                    told = True
            self.sleep(RETRY_S)

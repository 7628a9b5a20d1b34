"""The user and password of a tracking URI: taken from the environment by whoever connects, never written or printed."""

import os
import re

from gripline.errors import UserError

VARIABLE = "MLFLOW_TRACKING_URI"
STEP_VARIABLE = "GRIPLINE_TRACKING_URI"
"""What a Secret's VARIABLE is called in a step of the pipeline. Kubeflow's MLflow plugin sets VARIABLE itself, and the
API server refuses a pod with a variable that has both a value and a Secret."""


def redacted(text: str) -> str:
    """A URI, or a text with URIs, without users and passwords. Example: `http://me:pw@host/x` → `http://host/x`."""
    return re.sub(r"://[^/\s]*@", "://", text)


def refuse(uri: str, field: str) -> None:
    """Raise UserError for a URI that holds a password, where it would be written into run folders and logs."""
    if redacted(uri) != uri:
        problem = "holds a password, which would be written into run folders and logs"
        raise UserError(redacted(uri), field, problem, f"leave it out here, and set {VARIABLE} to the whole URI")


def from_environment() -> str:
    """The tracking URI that the environment names, with its password; empty where it names none."""
    return os.environ.get(STEP_VARIABLE) or os.environ.get(VARIABLE, "")


def with_credentials(uri: str) -> str:
    """The URI to connect to: the environment's, where it is the same but for user and password."""
    whole = from_environment()
    return whole if redacted(whole) == uri else uri

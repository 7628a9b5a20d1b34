"""Hand the compiled graph to a Kubeflow Pipelines server. Everything that can go wrong there becomes one line."""

import contextlib
import io
import json
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gripline.errors import UserError
from pipelines.compile import COMPILED

TOKEN_VARIABLE = "GRIPLINE_KFP_TOKEN"
"""Environment variable with a bearer token; never an option, which other users of the machine could read."""
FIRST_CONTACT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Server:
    """Where to submit."""

    host: str
    namespace: str = ""
    """Of the user, on a multi-user installation."""
    token: str = ""

    def __repr__(self) -> str:
        return f"Server({self.host!r}, {self.namespace!r}, token {'set' if self.token else 'not set'})"


def submit(server: Server, *, experiment: str, name: str, arguments: Mapping[str, str | int]) -> str:
    """Start a run of the compiled pipeline; returns the address of its page.

    name: shown in the UI, completed by the time. arguments: the pipeline's parameters. Raises UserError.
    """
    host = server.host.rstrip("/")
    if not host.startswith(("http://", "https://")):
        raise UserError("--host", "", f"{server.host!r} is no address", "begin it with http:// or https://")
    with _one_line(host):
        _check_is_kfp(host, server.token)
        import kfp

        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # kfp prints links of its own
            warnings.simplefilter("ignore", FutureWarning)
            client = kfp.Client(host=host, existing_token=server.token or None)
            found = client.create_experiment(experiment, namespace=server.namespace or None)
            run = client.run_pipeline(
                experiment_id=found.experiment_id,
                job_name=f"{name} {time.strftime('%Y-%m-%d %H:%M:%S')}",
                pipeline_package_path=str(COMPILED),
                params=dict(arguments),
            )
    return f"{host}/#/runs/details/{run.run_id}"


def _check_is_kfp(host: str, token: str) -> None:
    """First contact, with a timeout: kfp.Client has none, and retries a server that is not there for half a minute."""
    import kfp_server_api

    config = kfp_server_api.Configuration(host=host)
    config.retries = False
    if token:
        config.api_key["authorization"] = token
        config.api_key_prefix["authorization"] = "Bearer"
    api = kfp_server_api.HealthzServiceApi(kfp_server_api.ApiClient(config))
    answer = api.healthz_service_get_healthz(_preload_content=False, _request_timeout=int(FIRST_CONTACT_TIMEOUT_S))
    try:
        json.loads(answer.data)
    except ValueError as error:
        problem = "something answers, but it is not the Kubeflow Pipelines API"
        raise UserError(host, "--host", problem, "name the API (a port-forward of svc/ml-pipeline-ui, say)") from error


@contextlib.contextmanager
def _one_line(host: str) -> Iterator[None]:
    import urllib3.exceptions
    from kfp_server_api.exceptions import ApiException

    try:
        yield
    except ApiException as error:
        raise _refusal(host, int(error.status or 0), _message(error.body)) from None
    except urllib3.exceptions.HTTPError as error:
        reason = " ".join(str(error).split())[:200]
        next_step = "check the address, and that a port-forward is running"
        raise UserError(host, "--host", f"cannot be reached: {reason}", next_step) from None


def _refusal(host: str, status: int, message: str) -> UserError:
    said = f": {message}" if message else ""
    if status in (401, 403):
        next_step = f"put a valid bearer token into {TOKEN_VARIABLE}, or give your --namespace"
        return UserError(host, "--host", f"refuses us ({status}){said}", next_step)
    if status == 404:
        return UserError(host, "--host", f"has no Kubeflow Pipelines API (404){said}", "check the address and its path")
    if status >= 500:
        return UserError(host, "--host", f"is in trouble ({status}){said}", "try again, or see the API server's log")
    return UserError(host, "pipeline", f"was not accepted ({status}){said}", "is the server of KFP 2.17 or later?")


def _message(body: str | bytes | None) -> str:
    """The human part of an error's body; headers are never shown."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body or ""
    with contextlib.suppress(ValueError):
        parsed = json.loads(text)
        if isinstance(parsed, dict):
            text = (
                str(parsed["error_message"] if "error_message" in parsed else parsed["message"])
                if ("error_message" in parsed or "message" in parsed)
                else ""
            )
    return " ".join(text.split())[:200]

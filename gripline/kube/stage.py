"""A stage, run where the profile's `cluster` section says: in this step, or as a RayJob that this step waits for."""

import dataclasses
import importlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gripline import progress
from gripline.cluster_config import ClusterConfig
from gripline.credentials import VARIABLE as TRACKING_VARIABLE
from gripline.errors import UserError
from gripline.stages import RunContext

if TYPE_CHECKING:
    from gripline.kube.jobfiles import JobFiles, Request, Result

STAGES = {"sft": "sft", "rl": "rl", "eval-sft": "evaluate", "eval-rl": "evaluate"}
"""Job -> its name in `cluster.stages`."""
HANDED_ON = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "FSSPEC_S3_ENDPOINT_URL",
    "MLFLOW_S3_ENDPOINT_URL",
    "MLFLOW_WORKSPACE",
)
"""Of this step's environment, what its pods need too and is no secret."""
NONE: Mapping[str, str] = MappingProxyType({})
Outputs = dict[str, Any]


def run_stage(
    job: str,
    function: str,
    *,
    cluster: str,
    context: str,
    arguments: Mapping[str, str],
    files: Mapping[str, str] = NONE,
    outputs: Mapping[str, str] = NONE,
) -> Outputs:
    """What `function(context=…, **arguments, **files, **outputs)` returns, wherever it runs.

    job: 'sft', 'rl', 'eval-sft' or 'eval-rl'. function: such as 'components.rl.train:run'. cluster: a ClusterConfig as
    JSON with every image named; empty: here. files: arguments that are paths to read; outputs: paths to be written.
    """
    config = ClusterConfig.model_validate_json(cluster) if cluster else ClusterConfig()
    if STAGES[job] not in config.stages:
        module, _, name = function.partition(":")
        run: Callable[..., Outputs] = getattr(importlib.import_module(module), name)
        return run(context=context, **arguments, **files, **outputs)
    return _launch(job, function, config, {"context": context, **arguments}, files, outputs)


def _launch(
    job: str,
    function: str,
    config: ClusterConfig,
    arguments: Mapping[str, str],
    files: Mapping[str, str],
    outputs: Mapping[str, str],
) -> Outputs:
    from gripline.kube.api import connect, in_a_pod
    from gripline.kube.jobfiles import JobFiles
    from gripline.kube.launcher import Launcher
    from gripline.kube.own_pod import find_own_pod
    from gripline.kube.rayjob import Job, render
    from gripline.kube.surroundings import Surroundings
    from gripline.kube.termination import TIMEOUT_IN_POD_S, TIMEOUT_S

    context = RunContext.model_validate_json(arguments["context"])
    api = connect(config.namespace)
    around = Surroundings(
        cluster=api,
        emergency=api.separate(TIMEOUT_IN_POD_S if in_a_pod() else TIMEOUT_S),
        files=JobFiles(context.run_dir, job),
        hasty_files=JobFiles(context.run_dir, job, patience_s=0),
        warn=lambda text: progress.emit(job, "warn", text=text),
    )
    own_pod = around.patiently(lambda: find_own_pod(api))
    rayjob = Job(
        run_name=context.run_name,
        run_dir=context.run_dir,
        job=job,
        cluster=config,
        env=environment(os.environ, context.tracking_uri, has_secrets=bool(config.secrets)),
        owner=own_pod.owner(api.namespace),
    )
    manifest = render(rayjob)
    request = _request(function, config, arguments, files, outputs, own_pod.tags)
    for name, path in files.items():
        around.files.upload(Path(path), request.files[name])
    result = Launcher(config, job, manifest, request, dataclasses.replace(around, own_pod=own_pod)).run()
    for name, path in outputs.items():
        _fetch_output(around.files, request.outputs[name], Path(path), result)
    return dict(result.outputs)


def _request(
    function: str,
    config: ClusterConfig,
    arguments: Mapping[str, str],
    files: Mapping[str, str],
    outputs: Mapping[str, str],
    tags: Mapping[str, str],
) -> "Request":
    from gripline.kube.jobfiles import Request, content_hash
    from gripline.rollout.shares import Shares

    return Request(
        launch=uuid.uuid4().hex,
        function=function,
        arguments=dict(arguments),
        files={name: f"in/{name}-{content_hash(Path(path))[:8]}" for name, path in files.items()},
        outputs={name: f"out/{name}" for name in outputs},
        heartbeat_every_s=config.heartbeat_every_s,
        orphan_after_s=config.orphan_after_s,
        shares=Shares.of(config),
        tags=dict(tags),
    )


def _fetch_output(files: "JobFiles", name: str, path: Path, result: "Result") -> None:
    """Raises UserError where the store's file is not the one that the driver wrote."""
    from gripline.kube.jobfiles import content_hash

    if content_hash(files.download(name, path)) != result.files[name]:
        raise UserError(f"{files.uri}/{name}", "", "is not what the driver wrote", "start the same run again")


def environment(own: Mapping[str, str], tracking_uri: str, *, has_secrets: bool) -> dict[str, str]:
    """Of the pods, besides what the manifest says anyway. own: of this step. tracking_uri: without a password.

    The run that Kubeflow's MLflow plugin made for this step is the stage's own, so the driver gets its id.
    """
    handed_on = {name: own[name] for name in HANDED_ON if own.get(name)}
    if not has_secrets:  # one of them may hold the URI with its password, which an explicit variable would hide
        handed_on[TRACKING_VARIABLE] = tracking_uri
    if "KFP_MLFLOW_CONFIG" in own and "MLFLOW_RUN_ID" in own:
        plugin = json.loads(own["KFP_MLFLOW_CONFIG"])
        ids = {name: str(plugin[name]) for name in ("parentRunId", "experimentId") if name in plugin}
        handed_on |= {"MLFLOW_RUN_ID": own["MLFLOW_RUN_ID"], "KFP_MLFLOW_CONFIG": json.dumps(ids)}
    return handed_on

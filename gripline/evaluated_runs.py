"""Find an evaluated run by what a person has at hand: its folder or URI, its MLflow run id, or its KFP run id.

A folder needs neither MLflow nor a server. Episodes come from `results.jsonl`, which a run's folder and the MLflow run
of its evaluation both hold; a run of which MLflow has metrics only is told by these.
"""

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from gripline.comparison import Evaluation, Policy
from gripline.credentials import VARIABLE, redacted
from gripline.errors import UserError
from gripline.inputs import CHECKPOINT_FILE, PROFILE_FILE
from gripline.results import read_results
from gripline.stages import CONTEXT_FILE, RunContext
from gripline.store import RunStore, digest
from gripline.tracking import default_tracking_uri, flatten, one_line
from gripline.types import EpisodeRecord

RESULTS_FILE = "results.jsonl"
MLFLOW_ID = re.compile(r"[0-9a-f]{32}")
KFP_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
UNTRAINED = ("name", "description", "seed", "rollout", "eval", "promote", "tracking", "cluster")
"""What of a profile does not change the policy or what it is tested on, but for the seed: that is looked at apart."""
SAMPLING = ("decoding", "temperature", "samples")
"""Of the section `eval`: what sampled evaluations may differ in."""


def tracking_uri(given: str, runs: Sequence[str]) -> str:
    """Where to look for MLflow ids: the given URI, MLFLOW_TRACKING_URI, that of a run folder among `runs`, or the file
    beside the run folders here."""
    if not given and VARIABLE not in os.environ:
        for run in runs:
            context = Path(run) / CONTEXT_FILE
            if context.exists():
                return _context(context).tracking_uri
    return default_tracking_uri(given, "runs")


def read_evaluation(run: str, policy: Policy, tracking: str) -> Evaluation:
    """The evaluation of a run's policy. Raises UserError when there is none, or it cannot be read.

    run: folder or URI of a run, or of one evaluation, in it or by itself (then `policy` is that evaluation's); MLflow
    run id of a pipeline run or of an evaluation; KFP run id. tracking: MLflow's URI, used for ids only.
    """
    if "://" in run or Path(run).is_dir():
        return _from_folder(run, policy)
    if MLFLOW_ID.fullmatch(run) or KFP_ID.fullmatch(run):
        return _from_mlflow(run, policy, tracking)
    raise UserError(run, "", "is no run folder, MLflow run id or KFP run id", "name one, such as runs/laptop-1")


def _from_folder(run: str, policy: Policy, named: bool = False) -> Evaluation:
    """named: the folder of this policy's evaluation was given."""
    parent, _, stage = run.rstrip("/").rpartition("/")
    if stage.startswith("eval-") and stage.removeprefix("eval-") in get_args(Policy):
        return _from_folder(parent or ".", "sft" if stage == "eval-sft" else "rl", named=True)
    store = RunStore(run)
    results, context_file = store.pull(f"eval-{policy}/{RESULTS_FILE}"), store.pull(CONTEXT_FILE)
    other: Policy = "sft" if policy == "rl" else "rl"
    if not results.exists() and not context_file.exists() and not named:  # of no pipeline: an evaluation of one policy
        by_itself = store.pull(f"eval-{other}/{RESULTS_FILE}")
        results, policy = (by_itself, other) if by_itself.exists() else (results, policy)
    if not results.exists():
        where = f"{run.rstrip('/')}/eval-{policy}/{RESULTS_FILE}"
        raise UserError(where, "", "no such results file", _other_policy(policy))
    records = _read(results, f"{run.rstrip('/')}/eval-{policy}/{RESULTS_FILE}")
    if not context_file.exists():  # or somebody took only the results along
        return Evaluation(name=Path(run).resolve().name, policy=policy, records=records)
    context = _context(context_file)
    return Evaluation(
        name=context.run_name,
        policy=policy,
        records=records,
        profile=context.profile_name,
        seed=context.seed,
        settings=_settings_of_folder(store),
        mlflow_run_id=context.parent_run_id,
    )


def _from_mlflow(run: str, policy: Policy, tracking: str) -> Evaluation:
    from gripline import delivery

    if tracking.startswith("sqlite:///") and not Path(tracking.removeprefix("sqlite:///")).exists():
        raise UserError(tracking, "--tracking", "no such MLflow file", f"give --tracking URI, or set {VARIABLE}")
    with one_line(tracking):
        client = delivery.connect(tracking)
        with delivery.tracking_errors():
            found = _run_of_job(client, run, tracking) if KFP_ID.fullmatch(run) else _run(client, run, tracking)
            parent, evaluation, policy = _parent_and_evaluation(client, found, policy)
            records = _records(client, evaluation)
    tags = {**evaluation.data.tags, **parent.data.tags}
    metrics = _metrics_of(evaluation, policy)
    if not records and not metrics:
        problem = f"has no evaluation of its {policy.upper()} policy"
        raise UserError(f"MLflow run {run}", "", problem, _other_policy(policy))
    return Evaluation(
        name=str(tags.get("gripline.run_name", parent.info.run_name)),
        policy=policy,
        records=records,
        metrics=metrics,
        profile=tags.get("gripline.profile", ""),
        seed=int(tags["gripline.seed"]) if "gripline.seed" in tags else None,
        settings=_settings(parent.data.params, tags.get("gripline.checkpoint_uri", "")),
        mlflow_run_id=str(parent.info.run_id),
    )


def _run(client: Any, run_id: str, tracking: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        problem = f"no such MLflow run at {redacted(tracking)}"
        raise UserError(run_id, "", problem, "check the id, or give --tracking") from error


def _run_of_job(client: Any, job_id: str, tracking: str) -> Any:
    """The pipeline's MLflow run: `plan` leaves the KFP run id in its tags."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`gripline.job_id` = '{job_id}'", max_results=1)
    if not found:
        problem = f"no MLflow run at {redacted(tracking)} belongs to this KFP run"
        raise UserError(job_id, "", problem, "did its first step end? else give --tracking")
    return found[0]


def _parent_and_evaluation(client: Any, run: Any, policy: Policy) -> tuple[Any, Any, Policy]:
    """The pipeline's run, the run that holds the evaluation, and whose evaluation it is.

    Where no run of that evaluation exists, the given run has to speak for itself.
    """
    tags = run.data.tags
    parent = client.get_run(tags["mlflow.parentRunId"]) if "mlflow.parentRunId" in tags else run
    stage = tags.get("gripline.stage", "")
    if stage in ("eval-sft", "eval-rl"):
        return parent, run, "sft" if stage == "eval-sft" else "rl"
    query = f"tags.`gripline.stage` = 'eval-{policy}' and tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    children = client.search_runs([parent.info.experiment_id], query, max_results=1)
    return parent, children[0] if children else run, policy


def _metrics_of(run: Any, policy: Policy) -> dict[str, float]:
    """`eval/…` of an evaluation's run. A pipeline's run has the RL policy's under these names, and `sft/…` besides."""
    metrics: dict[str, float] = run.data.metrics
    stage = run.data.tags.get("gripline.stage", "")
    if policy == "rl" or stage == "eval-sft":
        return {name: value for name, value in metrics.items() if name.startswith("eval/")}
    return {f"eval/{name[4:]}": value for name, value in metrics.items() if name.startswith("sft/")}


def _records(client: Any, run: Any) -> list[EpisodeRecord]:
    """Empty where the run has no results file."""
    if RESULTS_FILE not in {item.path for item in client.list_artifacts(run.info.run_id)}:
        return []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(client.download_artifacts(run.info.run_id, RESULTS_FILE, scratch))
        return _read(path, f"MLflow run {run.info.run_id}: {RESULTS_FILE}")


def _read(path: Path, where: str) -> list[EpisodeRecord]:
    """The records; a problem is told under the name that the user knows."""
    try:
        return read_results(path)
    except UserError as error:
        raise UserError(where, error.field, error.problem, error.next_step) from error


def _context(path: Path) -> RunContext:
    try:
        return RunContext.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        next_step = "was it written by another version of gripline?"
        raise UserError(str(path), "", "cannot be read", next_step) from error


def _settings_of_folder(store: RunStore) -> str:
    profile, checkpoint = store.pull(PROFILE_FILE), store.pull(CHECKPOINT_FILE)
    if not profile.exists():
        return ""
    begun_with = checkpoint.read_text(encoding="utf-8") if checkpoint.exists() else ""
    try:  # not validated: a profile of an earlier version tells two trainings apart as well
        params = flatten(yaml.safe_load(profile.read_text(encoding="utf-8")))
    except (yaml.YAMLError, AttributeError) as error:
        raise UserError(f"{store.uri}/{PROFILE_FILE}", "", "is damaged", "copy the run's folder again") from error
    return _settings(params, begun_with)


def _settings(params: Mapping[str, str], checkpoint_uri: str) -> str:
    """Equal for profiles, as a file has them or as MLflow keeps them, that train and test alike."""
    kept = SAMPLING if params.get("eval.decoding") == "sampled" else ()
    trained = {
        name: value[:500]
        for name, value in params.items()
        if name.split(".")[0] not in UNTRAINED or name.removeprefix("eval.") in kept
    }
    return digest(json.dumps(trained, sort_keys=True), checkpoint_uri) if trained else ""


def _other_policy(policy: Policy) -> str:
    return "give --policy sft for the policy before RL" if policy == "rl" else "run the evaluation first"

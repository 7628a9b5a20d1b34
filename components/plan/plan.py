"""The first stage: checks everything that can be checked, draws the splits, opens the tracking, cuts the profile up."""

from typing import NamedTuple

from gripline import credentials, preflight, profiles, progress
from gripline.atomic import write_whole
from gripline.config import Profile
from gripline.errors import UserError
from gripline.inputs import CHECKPOINT_FILE, PROFILE_FILE, RunInputs
from gripline.kube.findings import WRONG
from gripline.kube.preflight import everything
from gripline.kube.rayjob import with_images
from gripline.stages import CONTEXT_FILE, DemosStage, EvalStage, PromoteStage, RlStage, RunContext, SftStage
from gripline.store import RunStore, is_local
from gripline.tracking import default_tracking_uri, ensure_parent


class Plan(NamedTuple):
    """JSON texts: the run's context, where stages run (of no stage's section, for it changes no result), and the
    section of each stage."""

    context: str
    cluster: str
    demos: str
    sft: str
    evaluate: str
    rl: str
    promote: str


def run(  # noqa: PLR0913  the pipeline's parameters
    *,
    profile: str,
    run_name: str,
    job_id: str,
    seed: int,
    checkpoint_uri: str,
    image: str,
    tracking_uri: str,
    store_uri: str,
    splits_path: str,
) -> Plan:
    """Plan a run, or find the one of the same name and inputs again. Writes the split lists to `splits_path`.

    profile: a name or YAML text. run_name: empty means `job_id`. seed: below 0 keeps the profile's. image: of the pods
    for which the profile names none. Raises UserError.
    """
    config = profiles.load(profile, seed=seed if seed >= 0 else None)
    splits = preflight.check(config, checkpoint_uri, warn=lambda text: progress.emit("plan", "warn", text=text))
    credentials.refuse(tracking_uri, "tracking_uri")
    if not store_uri:
        raise UserError("pipeline", "store_uri", "is empty", "name a folder or bucket, such as s3://bucket/runs")
    name = run_name or job_id
    run_dir = f"{store_uri.rstrip('/')}/{name}"
    tracking_uri = _tracking_uri(tracking_uri or config.tracking.uri, store_uri)
    _check_cluster(config, store_uri=store_uri, tracking_uri=tracking_uri, image=image)
    store = RunStore(run_dir)
    _claim(store, RunInputs(config, checkpoint_uri))
    tags = {"gripline.profile": config.name, "gripline.seed": str(config.seed), "gripline.job_id": job_id}
    tags |= {"gripline.checkpoint_uri": checkpoint_uri} if checkpoint_uri else {}
    tags |= {f"gripline.split.{split}": value[:12] for split, value in splits.hashes.items()}
    parent_run_id = ensure_parent(
        tracking_uri, config.tracking.experiment, name, tags=tags, params=config.model_dump(mode="json")
    )
    splits.write(splits_path)
    context = RunContext(
        run_name=name,
        run_dir=run_dir,
        tracking_uri=tracking_uri,
        experiment=config.tracking.experiment,
        parent_run_id=parent_run_id,
        profile_name=config.name,
        seed=config.seed,
        split_hashes=splits.hashes,
    )
    write_whole(store.local / CONTEXT_FILE, context.model_dump_json(indent=1))
    store.push(CONTEXT_FILE)
    return _sections(config, context, image)


def _check_cluster(profile: Profile, *, store_uri: str, tracking_uri: str, image: str) -> None:
    """Where stages run as RayJobs: tell what this step can see of the cluster. Raises UserError for what is wrong."""
    if not profile.cluster.stages:
        return
    found = list(everything(profile.cluster, store_uri=store_uri, tracking_uri=tracking_uri, image=image))
    for finding in found:
        progress.emit("plan", "warn" if finding.mark == WRONG else "note", text=finding.line)
    for finding in found:
        if finding.mark == WRONG:
            raise UserError("cluster", finding.name, finding.text, finding.mend)


def _sections(profile: Profile, context: RunContext, image: str) -> Plan:
    env, seed = profile.env, profile.seed
    demos = DemosStage(
        env=env,
        splits=profile.splits,
        variation=profile.variation,
        demos=profile.demos,
        num_actions=profile.policy.num_actions,
        seed=seed,
    )
    sections = (
        context,
        with_images(profile.cluster, image),
        demos,
        SftStage(env=env, policy=profile.policy, sft=profile.sft, seed=seed),
        EvalStage(env=env, rollout=profile.rollout, eval=profile.eval, seed=seed),
        RlStage(env=env, rollout=profile.rollout, rl=profile.rl, seed=seed),
        PromoteStage(env=env, promote=profile.promote, eval=profile.eval),
    )
    return Plan(*(section.model_dump_json() for section in sections))


def _tracking_uri(configured: str, store_uri: str) -> str:
    uri = default_tracking_uri(configured, store_uri.removeprefix("file://"))
    if not is_local(store_uri) and uri.startswith("sqlite:"):
        problem = "is empty, and the store is no folder that an SQLite file could lie in"
        raise UserError("pipeline", "tracking_uri", problem, "name an MLflow server, or set MLFLOW_TRACKING_URI")
    return uri


def _claim(store: RunStore, inputs: RunInputs) -> None:
    """Leave the run's inputs in its folder, which proves that it can be written; refuse that of another run."""
    for name in (CHECKPOINT_FILE, PROFILE_FILE):
        store.pull(name)
    difference = inputs.difference(store.local)
    if difference:
        raise UserError(store.uri, "run_name", f"is a run of other inputs: {difference}", "choose another run_name")
    inputs.write(store.local)
    for name in (CHECKPOINT_FILE, PROFILE_FILE):
        store.push(name)

"""The graph: demonstrations → SFT → evaluate → gate → RL → evaluate → promote. The same on a laptop and on a cluster.

Caching: `demos` alone is cached. Its inputs name no run, so equal demonstrations are recorded once per cluster (on a
laptop: per run folder); what the other steps do depends on the run's state in the store, which KFP cannot see, and they
skip what is finished themselves. Models stay in the store, `{store_uri}/{run_name or job id}`; an artifact holds their
URI and hash. There is no exit handler: it would hide the graph in one box, and is skipped on *terminate*. Nor is there
any `set_retry`, which does nothing under KFP's shipped manifests: steps retry inside.
"""

from kfp import dsl, kubernetes

from components.demos.component import demos
from components.eval.component import evaluate, gate, promote
from components.plan.component import plan
from components.rl.component import rl
from components.sft.component import sft
from gripline.cluster_config import LONGEST_LAUNCH_S
from gripline.credentials import STEP_VARIABLE, VARIABLE
from gripline.stages import STEP_IMAGE

HOUR_S = 3600
LAUNCH_H = LONGEST_LAUNCH_S // HOUR_S + 24
"""Of steps that may wait for a RayJob: a last resort. The real limit is the launcher's, `cluster.overall_timeout_s`."""

SECRETS = {
    "gripline-store": (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_ENDPOINT_URL",
        "AWS_DEFAULT_REGION",
    ),
    "gripline-mlflow": (
        VARIABLE,
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
    ),
}
"""Secret -> keys that become variables of every step, where they exist: docs/on_a_cluster.md."""
RENAMED = {VARIABLE: STEP_VARIABLE}
"""Key -> its variable, where that is called otherwise."""


@dsl.pipeline(
    name="post-training",
    description="Demonstrations, SFT, RL in simulation and a fixed-seed evaluation of a robot policy.",
)
def post_training(
    profile: str = "laptop",
    seed: int = -1,
    checkpoint_uri: str = "",
    image: str = STEP_IMAGE,
    tracking_uri: str = "",
    store_uri: str = "",
    run_name: str = "",
) -> None:
    """One complete run.

    profile: name of a shipped profile, or the YAML text of another. seed: -1 keeps the profile's own.
    checkpoint_uri: an SFT or LoRA checkpoint to start from; SFT is then skipped. image: of every step.
    tracking_uri: MLflow's; empty means the profile's, else the MLFLOW_TRACKING_URI of the step. store_uri: where run
    folders are made, such as s3://bucket/runs. run_name: empty means the job's id; a name that exists is continued.
    """
    planned = plan(
        profile=profile,
        seed=seed,
        checkpoint_uri=checkpoint_uri,
        image=image,
        tracking_uri=tracking_uri,
        store_uri=store_uri,
        run_name=run_name,
        job_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
    )
    sections = planned.outputs
    run, where, splits = sections["context"], sections["cluster"], sections["splits"]

    shown = demos(config=sections["demos"], checkpoint_uri=checkpoint_uri)
    taught = {"demonstrations": shown.outputs["demonstrations"]}
    tuned = sft(context=run, config=sections["sft"], cluster=where, checkpoint_uri=checkpoint_uri, **taught)
    policy = tuned.outputs["policy"]
    testing = {"context": run, "config": sections["evaluate"], "cluster": where, "splits": splits}
    before = evaluate(stage_name="sft", policy=policy, **testing)
    judging = {"context": run, "config": sections["promote"]}
    looked_at = {"policy": policy, "results": before.outputs["results"]}
    passed = gate(rl_config=sections["rl"], **judging, **looked_at, **taught)

    improved = rl(context=run, config=sections["rl"], cluster=where, policy=policy, splits=splits).after(passed)
    better = improved.outputs["improved_policy"]
    after = evaluate(stage_name="rl", policy=better, **testing)
    results = {"sft_results": before.outputs["results"], "rl_results": after.outputs["results"]}
    decided = promote(splits=splits, sft_policy=policy, rl_policy=better, **judging, **results)

    limits_h = {planned: 1, shown: 6, passed: 1, decided: 2} | dict.fromkeys((tuned, before, improved, after), LAUNCH_H)
    for task, hours in limits_h.items():
        task.set_container_image(image)
        task.set_caching_options(task is shown)
        kubernetes.set_timeout(task, hours * HOUR_S)
        for secret, keys in SECRETS.items():
            kubernetes.use_secret_as_env(task, secret, {key: RENAMED.get(key, key) for key in keys}, optional=True)

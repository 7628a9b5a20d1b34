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
from gripline.stages import STEP_IMAGE

HOUR_S = 3600


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
        tracking_uri=tracking_uri,
        store_uri=store_uri,
        run_name=run_name,
        job_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
    )
    run, sections = planned.outputs["context"], planned.outputs
    splits = planned.outputs["splits"]

    shown = demos(config=sections["demos"], checkpoint_uri=checkpoint_uri)
    tuned = sft(
        context=run,
        config=sections["sft"],
        checkpoint_uri=checkpoint_uri,
        demonstrations=shown.outputs["demonstrations"],
    )
    policy = tuned.outputs["policy"]
    before = evaluate(context=run, config=sections["evaluate"], stage_name="sft", policy=policy, splits=splits)
    passed = gate(context=run, config=sections["promote"], results=before.outputs["results"])

    improved = rl(context=run, config=sections["rl"], policy=policy, splits=splits).after(passed)
    better = improved.outputs["improved_policy"]
    after = evaluate(context=run, config=sections["evaluate"], stage_name="rl", policy=better, splits=splits)
    decided = promote(
        context=run,
        config=sections["promote"],
        splits=splits,
        sft_policy=policy,
        rl_policy=better,
        sft_results=before.outputs["results"],
        rl_results=after.outputs["results"],
    )

    limits_h = {planned: 1, shown: 6, tuned: 48, before: 12, passed: 1, improved: 96, after: 12, decided: 2}
    for task, hours in limits_h.items():
        task.set_container_image(image)
        task.set_caching_options(task is shown)
        kubernetes.set_timeout(task, hours * HOUR_S)

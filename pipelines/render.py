"""`gripline render`: the RayJob that a stage of a profile would run as, as YAML."""

import yaml

from gripline import credentials
from gripline.cluster_config import StageName
from gripline.config import Profile
from gripline.errors import UserError
from gripline.kube.rayjob import Job, with_images
from gripline.kube.rayjob import render as render_rayjob

STAGES: dict[str, StageName] = {"sft": "sft", "rl": "rl", "eval-sft": "evaluate", "eval-rl": "evaluate"}
"""Job -> the stage that it is."""


def render(profile: Profile, *, job: str, run_name: str, store_uri: str, image: str, tracking_uri: str) -> str:
    """The manifest of `job` as YAML. image: of pods that the profile names none for. Raises UserError."""
    stage = STAGES[job]
    if stage not in profile.cluster.stages:
        stages = ", ".join([*profile.cluster.stages, stage])
        problem = f"does not name {stage!r}, which therefore runs in its pipeline step, without a RayJob"
        raise UserError("profile", "cluster.stages", problem, f"--set 'cluster.stages=[{stages}]'")
    credentials.refuse(tracking_uri, "--tracking")
    tracking = tracking_uri or profile.tracking.uri
    name = run_name or profile.name
    manifest = render_rayjob(
        Job(
            run_name=name,
            run_dir=f"{store_uri.rstrip('/')}/{name}",
            job=job,
            cluster=with_images(profile.cluster, image),
            env={"MLFLOW_TRACKING_URI": tracking} if tracking else {},
        )
    )
    text: str = yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True)
    return text

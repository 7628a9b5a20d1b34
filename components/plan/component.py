"""The `plan` step as a pipeline component."""

from typing import NamedTuple

from kfp import dsl

from gripline.stages import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def plan(
    profile: str,
    seed: int,
    checkpoint_uri: str,
    image: str,
    tracking_uri: str,
    store_uri: str,
    run_name: str,
    job_id: str,
    splits: dsl.Output[dsl.Artifact],
) -> NamedTuple(  # type: ignore[valid-type]
    "Plan",
    [
        ("context", str),
        ("cluster", str),
        ("demos", str),
        ("sft", str),
        ("evaluate", str),
        ("rl", str),
        ("promote", str),
    ],
):
    """Check everything that can be checked before any work is done."""
    from gripline.progress import stage

    with stage("plan"):
        from components.plan.plan import run

        return run(
            profile=profile,
            run_name=run_name,
            job_id=job_id,
            seed=seed,
            checkpoint_uri=checkpoint_uri,
            image=image,
            tracking_uri=tracking_uri,
            store_uri=store_uri,
            splits_path=splits.path,
        )

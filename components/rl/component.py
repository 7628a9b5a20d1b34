"""The `rl` step as a pipeline component."""

from kfp import dsl

from gripline.stages import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def rl(
    context: str,
    config: str,
    cluster: str,
    policy: dsl.Input[dsl.Model],
    splits: dsl.Input[dsl.Artifact],
    improved_policy: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Improve the policy in simulation, here or as a RayJob. Like SFT's, the improved one stays in the store."""
    import json

    from gripline.progress import stage

    with stage("rl"):
        from gripline.kube.stage import run_stage

        result = run_stage(
            "rl",
            "components.rl.train:run",
            cluster=cluster,
            context=context,
            arguments={"config": config, "policy_uri": policy.metadata["uri"]},
            files={"splits_path": splits.path},
        )
        improved_policy.metadata.update({name: result.pop(name) for name in ("uri", "hash")})
        improved_policy.metadata["mlflow_run_id"] = json.loads(context)["parent_run_id"]
        metrics.metadata.update(result)

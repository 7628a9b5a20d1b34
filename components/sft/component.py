"""The `sft` step as a pipeline component."""

from kfp import dsl

from gripline.stages import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def sft(
    context: str,
    config: str,
    cluster: str,
    checkpoint_uri: str,
    demonstrations: dsl.Input[dsl.Dataset],
    policy: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Fine-tune on the demonstrations, here or as a RayJob; or check the given checkpoint and hand it on.

    The policy stays in the store; the artifact's metadata holds its URI and manifest hash.
    """
    import json

    from gripline.progress import stage

    with stage("sft"):
        from gripline.kube.stage import run_stage

        result = run_stage(
            "sft",
            "components.sft.train:run",
            cluster="" if checkpoint_uri else cluster,  # nothing to train, nothing to launch
            context=context,
            arguments={"config": config, "checkpoint_uri": checkpoint_uri},
            files={"demos_path": demonstrations.path},
        )
        policy.metadata.update({name: result.pop(name) for name in ("uri", "hash")})
        policy.metadata["mlflow_run_id"] = json.loads(context)["parent_run_id"]
        metrics.metadata.update(result)

"""The `sft` step as a pipeline component."""

from kfp import dsl

from gripline.stages import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def sft(
    context: str,
    config: str,
    checkpoint_uri: str,
    demonstrations: dsl.Input[dsl.Dataset],
    policy: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Fine-tune on the demonstrations, or check the given checkpoint and hand it on.

    The policy stays in the store; the artifact's metadata holds its URI and manifest hash.
    """
    from gripline.progress import stage

    with stage("sft"):
        from components.sft.train import run

        result = run(context=context, config=config, demos_path=demonstrations.path, checkpoint_uri=checkpoint_uri)
        policy.metadata.update({name: result.pop(name) for name in ("uri", "hash")})
        metrics.metadata.update(result)

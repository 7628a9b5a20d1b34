"""The `rl` step as a pipeline component."""

from kfp import dsl

from gripline.stages import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def rl(
    context: str,
    config: str,
    policy: dsl.Input[dsl.Model],
    splits: dsl.Input[dsl.Artifact],
    improved_policy: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Improve the policy in simulation. Like SFT's, the improved one stays in the store."""
    from gripline.progress import stage

    with stage("rl"):
        from components.rl.train import run

        result = run(context=context, config=config, policy_uri=policy.metadata["uri"], splits_path=splits.path)
        improved_policy.metadata.update({name: result.pop(name) for name in ("uri", "hash")})
        metrics.metadata.update(result)

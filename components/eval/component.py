"""The `evaluate`, `gate` and `promote` steps as pipeline components."""

from kfp import dsl

from gripline.stages import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def evaluate(
    context: str,
    config: str,
    cluster: str,
    stage_name: str,
    policy: dsl.Input[dsl.Model],
    splits: dsl.Input[dsl.Artifact],
    results: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Run every test episode once, here or as a RayJob. stage_name: 'sft' or 'rl', whose policy this is."""
    from gripline.progress import stage

    with stage(f"eval-{stage_name}"):
        from gripline.kube.stage import run_stage

        numbers = run_stage(
            f"eval-{stage_name}",
            "components.eval.evaluate:run",
            cluster=cluster,
            context=context,
            arguments={"config": config, "policy_uri": policy.metadata["uri"], "stage": stage_name},
            files={"splits_path": splits.path},
            outputs={"results_path": results.path},
        )
        metrics.metadata.update(numbers)


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def gate(
    context: str,
    config: str,
    rl_config: str,
    policy: dsl.Input[dsl.Model],
    demonstrations: dsl.Input[dsl.Dataset],
    results: dsl.Input[dsl.Dataset],
    findings: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Stop the run where the policy is broken, or RL could not learn from a 0/1 reward."""
    from gripline.progress import stage

    with stage("gate"):
        from components.eval.gate import run

        numbers = run(
            context=context,
            config=config,
            rl_config=rl_config,
            policy_uri=policy.metadata["uri"],
            demos_path=demonstrations.path,
            results_path=results.path,
            table_path=findings.path,
        )
        metrics.metadata.update(numbers)


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def promote(
    context: str,
    config: str,
    splits: dsl.Input[dsl.Artifact],
    sft_policy: dsl.Input[dsl.Model],
    rl_policy: dsl.Input[dsl.Model],
    sft_results: dsl.Input[dsl.Dataset],
    rl_results: dsl.Input[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    table: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Compare both policies on the same episodes, write the report, and promote the better one."""
    from gripline.progress import stage

    with stage("promote"):
        from components.eval.promote import run

        numbers = run(
            context=context,
            config=config,
            splits_path=splits.path,
            sft_results_path=sft_results.path,
            rl_results_path=rl_results.path,
            sft_uri=sft_policy.metadata["uri"],
            rl_uri=rl_policy.metadata["uri"],
            report_path=report.path,
            markdown_path=table.path,
        )
        metrics.metadata.update(numbers)

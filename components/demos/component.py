"""The `demos` step as a pipeline component."""

from kfp import dsl

from gripline.stages import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def demos(config: str, checkpoint_uri: str, demonstrations: dsl.Output[dsl.Dataset]) -> None:
    """Record the demonstrations. Cached: nothing in the inputs names a run, so equal ones are recorded once."""
    from gripline.progress import stage

    with stage("demos"):
        from components.demos.collect import run

        facts = run(config=config, demos_path=demonstrations.path, checkpoint_uri=checkpoint_uri)
        demonstrations.metadata.update(facts)

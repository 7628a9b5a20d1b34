"""Compile the graph to the YAML that a Kubeflow Pipelines server takes."""

from pathlib import Path

from gripline.atomic import whole
from gripline.errors import UserError

COMPILED = Path(__file__).with_name("post_training.yaml")
"""Committed; a test compares it with a fresh compilation."""


def compile_pipeline(out: Path) -> None:
    """Write the compiled pipeline. Raises UserError where `out` cannot be written."""
    if out.suffix != ".yaml":
        raise UserError(str(out), "--out", "is no .yaml file", "choose a name that ends in .yaml")
    from kfp import compiler

    from pipelines.post_training import post_training

    with whole(out) as temporary:
        compiler.Compiler().compile(post_training, str(temporary))

"""`python run_fake.py GRAPH DIR [KEY=VALUE …]`: the front end, run on a fake graph with profile smoke."""

import sys
from pathlib import Path

from gripline import profiles
from gripline.errors import UserError
from gripline.inputs import RunInputs
from pipelines.local import run_local

if __name__ == "__main__":
    graph, out, *overrides = sys.argv[1:]
    inputs = RunInputs(profiles.load("smoke", overrides))
    try:
        sys.exit(run_local(inputs, Path(out), pipeline=f"fake_graphs:{graph}", stages=("zero", "first", "second")))
    except UserError as error:
        print(f"gripline: {error.line}", file=sys.stderr)
        sys.exit(2)

"""A pipeline step as a process: `python -m cluster.step SPEC.json` does what a component's body does."""

import json
import sys
from pathlib import Path


def main(path: str) -> None:
    from gripline.progress import stage

    spec = json.loads(Path(path).read_text())
    with stage(spec["job"]):
        from gripline.kube.stage import run_stage

        outputs = run_stage(
            spec["job"],
            "cluster.played:run",
            cluster=spec["cluster"],
            context=spec["context"],
            arguments=spec["arguments"],
            files=spec["files"],
            outputs=spec["outputs"],
        )
        Path(spec["returned"]).write_text(json.dumps(outputs))


if __name__ == "__main__":
    main(sys.argv[1])

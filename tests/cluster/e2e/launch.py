"""In the launcher's pod: what the body of the `rl` component does, with its inputs from a mounted folder."""

import json
import sys
from pathlib import Path

from gripline.progress import stage


def main(folder: Path) -> None:
    inputs = json.loads((folder / "inputs.json").read_text())
    with stage("rl"):
        from gripline.kube.stage import run_stage

        outputs = run_stage(
            "rl",
            "components.rl.train:run",
            cluster=inputs["cluster"],
            context=inputs["context"],
            arguments={"config": inputs["config"], "policy_uri": inputs["policy_uri"]},
            files={"splits_path": str(folder / "splits.json")},
        )
    print(f"outputs {json.dumps(outputs)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

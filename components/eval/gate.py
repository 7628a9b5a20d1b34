"""The gate before RL: an evaluation that leaves nothing to learn from stops the run before it burns a day of GPUs."""

from pathlib import Path

from gripline import progress
from gripline.errors import UserError
from gripline.results import read_results
from gripline.stages import PromoteStage, RunContext
from gripline.summary import summarise_policy


def run(*, context: str, config: str, results_path: str) -> None:
    """Raise UserError when the evaluated policy cannot learn from a 0/1 reward."""
    run_context = RunContext.model_validate_json(context)
    stage = PromoteStage.model_validate_json(config)
    records = read_results(Path(results_path))
    success, limits = summarise_policy(records).iid.success, stage.promote
    where = f"{run_context.run_dir}/eval-sft/results.jsonl"
    if success < limits.gate_min_success:
        raise UserError(
            where,
            "promote.gate_min_success",
            f"IID success {success:.3f} is below {limits.gate_min_success}: a sparse reward would hardly ever be seen",
            "give more demonstrations (demos.per_task) or SFT steps, or check the camera with a video",
        )
    if success > limits.gate_max_success:
        raise UserError(
            where,
            "promote.gate_max_success",
            f"IID success {success:.3f} is above {limits.gate_max_success}: RL has nothing to improve",
            "choose harder tasks, or promote this checkpoint as it is",
        )
    progress.emit("gate", "note", text=f"IID success {success:.3f}: RL can learn from this")

"""`gripline trace`: the recorded timeline of an RL iteration, found in a run's folder and drawn."""

from pathlib import Path

from gripline.errors import UserError

FOLDER = Path("rl", "trace")


def find(run: Path, iteration: int | None) -> Path:
    """The trace file of an iteration of the run, the newest one by default. Raises UserError with what there is."""
    if not run.is_dir():
        raise UserError(str(run), "RUN", "is no folder", "give the folder of a run, such as runs/laptop-1")
    numbered = {path.stem.removeprefix("iteration-"): path for path in (run / FOLDER).glob("iteration-*.json")}
    recorded = {int(number): path for number, path in numbered.items() if number.isdecimal()}
    if not recorded:
        next_step = "an RL run records one every rollout.trace_every iterations"
        raise UserError(str(run), "RUN", f"holds no recorded iteration in {FOLDER}/", next_step)
    if iteration is None:
        return recorded[max(recorded)]
    if iteration not in recorded:
        known = ", ".join(str(number) for number in sorted(recorded))
        raise UserError(str(run), "--iteration", f"iteration {iteration} was not recorded", f"recorded: {known}")
    return recorded[iteration]


def show(run: Path, iteration: int | None, out: Path | None) -> list[tuple[str, Path]]:
    """Draw the iteration into `out` (by default the run's trace folder); returns what was written and what was read."""
    trace = find(run, iteration)
    from gripline.rollout.trace import draw

    picture, page = draw(trace, out if out is not None else trace.parent)
    return [("picture", picture), ("page", page), ("Chrome trace, for https://ui.perfetto.dev", trace)]

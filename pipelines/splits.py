"""`gripline splits`: the episode lists of a profile, shown, written and checked."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gripline import profiles
from gripline.errors import UserError
from gripline.splits import Splits, build_splits


def show(profile: str | None, overrides: Sequence[str], seed: int | None, out: Path | None) -> int:
    """Print the lists of a profile, and write them to `out` if given. Raises UserError."""
    if profile is None:
        raise UserError("gripline splits", "PROFILE", "is missing", "name a profile, or check a file with --check FILE")
    splits = build_splits(profiles.load(profile, overrides, seed))
    print("\n".join(table(splits)))
    if out is not None:
        splits.write(out)
        print(f"written: {out}")
    return 0


def check(path: Path, profile: str | None, overrides: Sequence[str], seed: int | None) -> int:
    """Verify a file of lists, and that it is what the profile draws, if one is given. Raises UserError."""
    if profile is None and (overrides or seed is not None):
        raise UserError("gripline splits", "PROFILE", "is missing", "--set and --seed change a profile: name one")
    splits = Splits.read(path)
    print("\n".join(table(splits)))
    if profile is not None:
        drawn = build_splits(profiles.load(profile, overrides, seed)).hashes
        other = [name for name, value in splits.hashes.items() if drawn[name] != value]
        if other:
            next_step = "give the profile, --set and --seed that it was written with"
            problem = f"is not what {profile} draws: lists {', '.join(other)} differ"
            raise UserError(str(path), f"hashes.{other[0]}", problem, next_step)
    origin = f", and what {profile} draws" if profile is not None else ""
    print(f"{path}: whole, no tested state is trained on{origin}")
    return 0


def table(splits: Splits) -> list[str]:
    """One line for each list and axis: episodes of each task, all of them, and the list's hash."""
    tasks = list(dict.fromkeys(spec.task for name in splits.NAMES for spec in splits.lists[name]))
    rows = [("list", "axis", *tasks, "all", "sha256")]
    for name in splits.NAMES:
        counts = Counter((spec.axis, spec.task) for spec in splits.lists[name])
        axes = list(dict.fromkeys(spec.axis for spec in splits.lists[name]))
        for number, axis in enumerate(axes):
            cells = [counts[axis, task] for task in tasks]
            first = number == 0
            rows.append(
                (
                    name if first else "",
                    axis if axis != name else "",
                    *(str(cell or "") for cell in cells),
                    str(sum(cells)),
                    splits.hashes[name][:16] if first else "",
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = (0, 1, len(widths) - 1)
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]

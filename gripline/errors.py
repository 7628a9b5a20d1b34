"""What went wrong, told to the person who can mend it.

A `UserError` is the user's mistake (or the machine's state): one line that names the file or option, the field,
and the next step. Entry points print it without a traceback and exit with code 2. Everything else is ours and keeps
its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """One line for the user.

    Example: `UserError("profiles/laptop.yaml", "rl.lr", "must be > 0, got -1", "set a value such as 3e-4")`
    prints as `profiles/laptop.yaml: rl.lr: must be > 0, got -1; set a value such as 3e-4`.
    """

    def __init__(self, where: str, field: str, problem: str, next_step: str) -> None:
        self.where, self.field, self.problem, self.next_step = where, field, problem, next_step
        parts = [part for part in (where, field) if part]
        line = ": ".join([*parts, problem]) + (f"; {next_step}" if next_step else "")
        self.line = " ".join(line.split())
        """What to print. Not `str(error)`: Ray puts a remote traceback into that."""
        super().__init__(self.line)

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str, str, str]]:
        """Survive the trip between processes: an exception is pickled by its arguments."""
        return (type(self), (self.where, self.field, self.problem, self.next_step))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The next step for an unknown name: the nearest known one, or the list of all."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(choices)}"

"""What a check found: right; wrong, with the command that mends it; or not checked, with the reason."""

from dataclasses import dataclass
from typing import Literal

OK: Literal["✓"] = "✓"
WRONG: Literal["✗"] = "✗"
UNKNOWN: Literal["–"] = "–"


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    name: str
    mark: Literal["✓", "✗", "–"]
    text: str
    mend: str = ""

    @property
    def line(self) -> str:
        """Mark, name, text, and what mends it, in one line."""
        return f"{self.mark} {self.name:<11} {self.text}" + (f"; {self.mend}" if self.mend else "")

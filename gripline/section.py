"""The base of every schema: unknown keys are errors, and nothing changes after it was checked."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

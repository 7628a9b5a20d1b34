"""The base of every schema: unknown keys are errors, and nothing changes after it was checked."""

from pydantic import BaseModel, BeforeValidator, ConfigDict

YAML_OFF = BeforeValidator(lambda value: "off" if value is False else value)
"""For a choice that has 'off' among its words: YAML reads that word, unquoted, as false."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

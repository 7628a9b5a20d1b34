"""Profiles: one complete run per YAML file, listing only what differs from the defaults in `gripline.config`.

Everything that can be wrong with one is told here, as one line that names the file, the dotted field and the next step.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from gripline.config import Profile
from gripline.errors import UserError, did_you_mean

FOLDER = Path(__file__).resolve().parent.parent / "profiles"
"""The shipped profiles, beside the package: they come with a clone (`pip install -e .`), not with a wheel."""
SUFFIXES = (".yaml", ".yml")
OVERRIDE = "--set"


def names() -> list[str]:
    """The shipped profiles. Raises UserError where there are none to be found."""
    found = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if not found:
        problem = "the shipped profiles are not installed with the package"
        raise UserError(str(FOLDER), "", problem, "install from a clone (pip install -e .) or name a .yaml file")
    return found


def load(profile: str, overrides: Sequence[str] = (), seed: int | None = None) -> Profile:
    """The validated profile.

    profile: name of a shipped one, path of a YAML file, or the YAML text itself (what the pipeline parameter holds).
    overrides: 'rl.lr=1e-4' and the like, dotted keys and YAML values; they win over the file.
    seed: replaces the profile's own unless None.
    Raises UserError for anything unreadable, unknown or out of range.
    """
    where, text = _find(profile)
    body = _mapping(text, where)
    changed = [_override(item, body) for item in overrides]
    if seed is not None:
        body["seed"] = seed
        changed.append(("seed",))
    try:
        return Profile.model_validate(body)
    except ValidationError as error:
        raise _first_problem(error, where, changed) from None


def dump(profile: Profile) -> str:
    """The whole profile as YAML, defaults included: what a run directory keeps, and what is sent to a cluster."""
    text: str = yaml.safe_dump(profile.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def first_difference(ours: Profile, theirs: Profile) -> str:
    """'rl.lr is 0.0001 here, 0.0003 there' for the first field that differs; empty when the profiles are equal."""
    here, there = _flat(ours.model_dump(mode="json")), _flat(theirs.model_dump(mode="json"))
    for field in here | there:
        if here.get(field) != there.get(field):
            return f"{field} is {here.get(field)!r} here, {there.get(field)!r} there"
    return ""


def _find(profile: str) -> tuple[str, str]:
    """(how to call it in an error, its YAML text)."""
    if "\n" in profile:
        return "profile", profile
    if "/" not in profile and not profile.endswith(SUFFIXES):
        known = names()
        if profile not in known:
            step = did_you_mean(profile, known)
            raise UserError("PROFILE", "", f"no profile is called {profile!r}", f"{step} (a path must end in .yaml)")
        return _read(FOLDER / f"{profile}.yaml", f"profiles/{profile}.yaml")
    return _read(Path(profile), profile)


def _read(path: Path, where: str) -> tuple[str, str]:
    try:
        return where, path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(where, "", f"cannot be read: {error.strerror}", "see `gripline profiles` for names") from error
    except UnicodeDecodeError as error:
        raise UserError(where, "", f"is not UTF-8 text (byte {error.start})", "name a YAML file") from error


def _mapping(text: str, where: str) -> dict[str, Any]:
    try:
        body = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        line = f"line {mark.line + 1}" if mark is not None else ""
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
        raise UserError(where, line, f"is not valid YAML: {problem}", "mend the file") from error
    if not isinstance(body, dict):
        raise UserError(where, "", "is not a mapping of keys to values", "see profiles/laptop.yaml for an example")
    return body


def _override(item: str, body: dict[str, Any]) -> tuple[str, ...]:
    """Write one 'dotted.key=value' into `body`; returns the path of the key."""
    key, equals, text = item.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise UserError(OVERRIDE, item, "is not of the form section.key=value", "for example --set rl.lr=1e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(OVERRIDE, key, f"{text!r} is not a YAML value", "quote it, or use [a, b] for a list") from error
    section = body
    for part in path[:-1]:
        inner = section.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(OVERRIDE, key, f"{part!r} is a value, not a section", "drop what follows its name")
        section = inner
    section[path[-1]] = value
    return path


def _first_problem(error: ValidationError, where: str, overrides: Sequence[tuple[str, ...]]) -> UserError:
    problems = error.errors(include_url=False)
    first = problems[0]
    path = first["loc"]
    names_only = tuple(part for part in path if isinstance(part, str))
    if names_only and any(override[: len(names_only)] == names_only[: len(override)] for override in overrides):
        where = OVERRIDE
    problem, next_step = _explain(first, names_only)
    if len(problems) > 1:
        problem += f" (and {len(problems) - 1} more)"
    return UserError(where, _dotted(path), problem, next_step)


def _explain(problem: Mapping[str, Any], path: tuple[str, ...]) -> tuple[str, str]:
    """(what is wrong, what to do about it) of one pydantic error."""
    kind, got = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return "unknown key", did_you_mean(path[-1], _section(path[:-1]).model_fields)
    if kind == "missing":
        return "is missing", "add it"
    if kind == "value_error":
        return str(problem["ctx"]["error"]), "change one of them"
    if kind == "model_type":
        return "is a section, not a value", f"set its keys, such as {next(iter(_section(path).model_fields))}"
    text = problem["msg"].replace("Input should be", "must be")
    if kind == "literal_error" and isinstance(got, str):
        return f"{text}, got {got!r}", did_you_mean(got, _choices(path))
    shown = f", got {got!r}" if len(repr(got)) < 60 else ""
    return text + shown, _default_hint(path)


def _section(path: Sequence[str]) -> type[BaseModel]:
    """The schema at a dotted path."""
    model: type[BaseModel] = Profile
    for part in path:
        annotation = model.model_fields[part].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel), f"{part} is not a section"
        model = annotation
    return model


def _choices(path: tuple[str, ...]) -> tuple[str, ...]:
    return get_args(_section(path[:-1]).model_fields[path[-1]].annotation)


def _default_hint(path: tuple[str, ...]) -> str:
    fields = _section(path[:-1]).model_fields
    if not path or path[-1] not in fields or fields[path[-1]].is_required():
        return "see gripline/config.py"
    return f"the default is {fields[path[-1]].default!r}"


def _dotted(path: Sequence[int | str]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _flat(body: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in body.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat

"""Profiles: one complete run per YAML file, listing only what differs from the defaults in `gripline.config`.

Everything that can be wrong with one is told here, as one line that names the file, the dotted field and the next step.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from gripline.cluster_config import ClusterConfig, Placement, PodConfig
from gripline.config import Profile
from gripline.errors import UserError, did_you_mean
from gripline.kube.placement import check_placements, pods_of

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
    A placement that is the path of a file, relative to the profile's (in an override: to the working directory), is
    replaced by the file's content and checked. Raises UserError for anything unreadable, unknown or out of range.
    """
    where, text, folder = _find(profile)
    body = _mapping(text, where)
    sources = _insert_placements(body, where, folder)
    changed = [_override(item, body) for item in overrides]
    sources = {pods: source for pods, source in sources.items() if not _is_replaced(pods, changed)}
    sources |= _insert_placements(body, OVERRIDE, Path())
    if seed is not None:
        body["seed"] = seed
        changed.append(("seed",))
    for pods, pod in _with_placement(body):
        pod["placement"] = _placement(pod["placement"], pods, sources.get(pods, ""), where, changed)
    try:
        loaded = Profile.model_validate(body)
    except ValidationError as error:
        raise _first_problem(error, where, changed) from None
    if sources:
        check_placements(loaded.cluster, sources)
    return loaded


def load_placement(path: str) -> Placement:
    """The placement of a file of one's own. Raises UserError for what is wrong in it."""
    _, text = _read(Path(path), path, "name the .yaml file of a placement")
    try:
        return Placement.model_validate(_mapping(text, path, "see gripline/kube/placements for examples"))
    except ValidationError as error:
        raise _first_problem(error, path, (), Placement) from None


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


def _find(profile: str) -> tuple[str, str, Path | None]:
    """(how to call it in an error, its YAML text, the folder that it lies in; None: it is no file)."""
    if "\n" in profile:
        return "profile", profile, None
    if not _is_path(profile):
        known = names()
        if profile not in known:
            step = did_you_mean(profile, known)
            raise UserError("PROFILE", "", f"no profile is called {profile!r}", f"{step} (a path must end in .yaml)")
        return *_read(FOLDER / f"{profile}.yaml", f"profiles/{profile}.yaml"), FOLDER
    return *_read(Path(profile), profile), Path(profile).parent


def _is_path(named: str) -> bool:
    return "/" in named or named.endswith(SUFFIXES)


def _read(path: Path, where: str, next_step: str = "see `gripline profiles` for names") -> tuple[str, str]:
    try:
        return where, path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(where, "", f"cannot be read: {error.strerror}", next_step) from error
    except UnicodeDecodeError as error:
        raise UserError(where, "", f"is not UTF-8 text (byte {error.start})", "name a YAML file") from error


def _mapping(text: str, where: str, next_step: str = "see profiles/laptop.yaml for an example") -> dict[str, Any]:
    try:
        body = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        line = f"line {mark.line + 1}" if mark is not None else ""
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
        raise UserError(where, line, f"is not valid YAML: {problem}", "mend the file") from error
    if not isinstance(body, dict):
        raise UserError(where, "", "is not a mapping of keys to values", next_step)
    return body


def _with_placement(body: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, section) of each kind of pod whose placement is given."""
    cluster = body.get("cluster")
    for pods in pods_of(ClusterConfig()):
        section = cluster.get(pods) if isinstance(cluster, dict) else None
        if isinstance(section, dict) and "placement" in section:
            yield pods, section


def _insert_placements(body: Mapping[str, Any], where: str, folder: Path | None) -> dict[str, str]:
    """Put the content of placement files where their paths stand. Returns {kind of pod: path}."""
    sources = {}
    for pods, section in _with_placement(body):
        named = section["placement"]
        if not isinstance(named, str) or not _is_path(named):
            continue
        if folder is None:
            problem = f"{named!r} is a path, and this profile is no file that it could lie beside"
            raise UserError(where, f"cluster.{pods}.placement", problem, "give the placement's own keys instead")
        path = folder / named
        try:
            _, text = _read(path, str(path))
        except UserError as error:
            step = "name a shipped placement, or the .yaml file of your own"
            raise UserError(where, f"cluster.{pods}.placement", f"{path} {error.problem}", step) from None
        section["placement"] = _mapping(text, str(path), "see gripline/kube/placements for examples")
        sources[pods] = str(path)
    return sources


def _is_replaced(pods: str, overrides: Sequence[tuple[str, ...]]) -> bool:
    """The placement of the file gave way to one of the command line."""
    path = ("cluster", pods, "placement")
    return any(override == path[: len(override)] for override in overrides)


def _placement(
    given: object, pods: str, source: str, where: str, overrides: Sequence[tuple[str, ...]]
) -> str | Placement:
    """What `placement` of one kind of pod says. source: the file that it was read from, if any."""
    path = ("cluster", pods, "placement")
    if isinstance(given, str | Placement):  # the latter: a section that an alias of YAML repeats
        return given
    if not isinstance(given, dict):
        where = OVERRIDE if path in overrides else where
        step = f"the default is {PodConfig().placement!r}"
        raise UserError(where, _dotted(path), f"must be a name, a path or a mapping, got {given!r}", step)
    try:
        return Placement.model_validate(given)
    except ValidationError as error:
        raise _first_problem(error, where, overrides, Placement, path, source) from None


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


def _first_problem(
    error: ValidationError,
    where: str,
    overrides: Sequence[tuple[str, ...]],
    root: type[BaseModel] = Profile,
    prefix: tuple[str, ...] = (),
    source: str = "",
) -> UserError:
    """prefix: path of `root` in the profile. source: the file of its own that it was read from, if any."""
    problems = error.errors(include_url=False)
    first = problems[0]
    inside = first["loc"]
    path = (*prefix, *inside)
    names_only = tuple(part for part in path if isinstance(part, str))
    if names_only and any(override[: len(names_only)] == names_only[: len(override)] for override in overrides):
        where = OVERRIDE
    elif source:
        where, path = source, inside
    problem, next_step = _explain(first, tuple(part for part in inside if isinstance(part, str)), root)
    if len(problems) > 1:
        problem += f" (and {len(problems) - 1} more)"
    return UserError(where, _dotted(path), problem, next_step)


def _explain(problem: Mapping[str, Any], path: tuple[str, ...], root: type[BaseModel]) -> tuple[str, str]:
    """(what is wrong, what to do about it) of one pydantic error."""
    kind, got = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return "unknown key", did_you_mean(path[-1], _fields(path[:-1], root))
    if kind == "missing":
        return "is missing", "add it"
    if kind == "value_error":
        return str(problem["ctx"]["error"]), "change one of them"
    if kind == "model_type":
        return "is a section, not a value", f"set its keys, such as {next(iter(_fields(path, root)))}"
    text = problem["msg"].replace("Input should be", "must be")
    if kind == "literal_error" and isinstance(got, str):
        return f"{text}, got {got!r}", did_you_mean(got, _choices(path, root))
    shown = f", got {got!r}" if len(repr(got)) < 60 else ""
    if kind == "string_type" and isinstance(got, bool | int | float):
        return text + shown, "put it in quotes"
    return text + shown, _default_hint(path, root)


def _fields(path: Sequence[str], root: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """The fields of the section at a dotted path (indices left out); none where there is no section."""
    model: type[BaseModel] | None = root
    for part in path:
        if model is None or part not in model.model_fields:
            return {}
        annotation = model.model_fields[part].annotation
        inner = (annotation, *get_args(annotation))  # the section itself, or a tuple of it
        model = next((each for each in inner if isinstance(each, type) and issubclass(each, BaseModel)), None)
    return model.model_fields if model is not None else {}


def _choices(path: tuple[str, ...], root: type[BaseModel]) -> list[str]:
    annotation = _fields(path[:-1], root)[path[-1]].annotation
    literals = [each for each in (annotation, *get_args(annotation)) if get_origin(each) is Literal]
    return [choice for literal in literals for choice in get_args(literal)]


def _default_hint(path: tuple[str, ...], root: type[BaseModel]) -> str:
    fields = _fields(path[:-1], root)
    if not path or path[-1] not in fields or fields[path[-1]].is_required():
        return f"see {root.__module__.replace('.', '/')}.py"
    return f"the default is {fields[path[-1]].get_default(call_default_factory=True)!r}"


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

"""The documents name only what exists: files, commands, options, targets, configuration fields, summary fields."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from gripline import profiles
from gripline.config import Profile
from gripline.splits import build_splits
from gripline.summary import Summary
from pipelines.cli import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
FOLDERS = ("gripline", "components", "pipelines", "profiles", "benchmarks", "docs", "tests")
PACKAGES = ("gripline", "components", "pipelines")
DECISION_PARTS = ["Context", "Choice", "Alternatives", "What would change our mind"]
PAGE_LINES = 60

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(document: Path) -> list[tuple[str, str]]:
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def code_spans(document: Path) -> list[str]:
    """What stands between single backticks, outside of fenced blocks."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def shell_lines(document: Path) -> Iterator[str]:
    """Command lines of the document: shell blocks with continued lines joined, and code spans."""
    for language, content in blocks(document):
        if language == "sh":
            yield from content.replace("\\\n", " ").splitlines()
    yield from code_spans(document)


def anchors(document: Path) -> set[str]:
    """GitHub's names of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def commands() -> dict[str, set[str]]:
    """The subcommands of `gripline`, with their options."""
    import contextlib
    import io

    def help_of(*arguments: str) -> str:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as ended:
            main([*arguments, "--help"])
        assert ended.value.code == 0
        return shown.getvalue()

    names = re.findall(r"^    ([a-z]+)  ", help_of(), re.MULTILINE)
    assert "run" in names
    return {name: {"--help", *re.findall(r"--[a-z-]+", help_of(name))} for name in names}


@every_document
def test_relative_links_resolve(document: Path) -> None:
    """Catches: a file that was moved, a picture that is missing, a heading that was renamed."""
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), f"{target} does not exist"
        assert path.is_relative_to(ROOT), f"{target} leads out of the repository"
        assert not anchor or anchor in anchors(path), f"{target}: no such heading"


@every_document
def test_named_paths_and_modules_exist(document: Path) -> None:
    """Catches: prose about code that was renamed."""
    for span in code_spans(document):
        first = re.split(r"[/.]", span)[0]
        if re.fullmatch(r"[\w./-]+", span) and "/" in span and first in FOLDERS:
            assert (ROOT / span).exists(), f"{span} does not exist"
        elif re.fullmatch(r"[\w.]+", span) and "." in span and first in PACKAGES:
            module = ROOT / span.replace(".", "/")
            parent, name = module.parent.with_suffix(".py"), module.name
            holds = parent.exists() and re.search(rf"\b{name}\b", parent.read_text(encoding="utf-8"))
            assert module.is_dir() or module.with_suffix(".py").exists() or holds, f"{span} does not exist"


@every_document
def test_named_commands_and_options_exist(document: Path, commands: dict[str, set[str]]) -> None:
    """Catches: an instruction that ends in an error message."""
    for line in shell_lines(document):
        words = shlex.split(line, comments=True) if line.startswith("gripline ") else []
        if len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in commands, line
            options = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
            assert options <= commands[words[1]], line


@every_document
def test_named_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in shell_lines(document):
        match = re.match(r"make ([a-z0-9-]+)", line)
        assert not match or match[1] in targets, line


@every_document
def test_named_configuration_fields_exist(document: Path) -> None:
    """Catches: a field that was renamed, in prose and behind --set."""
    named = [span for span in code_spans(document) if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", span)]
    for line in shell_lines(document):
        named += re.findall(r"--set ([\w.]+)=", line)
    for field in named:
        model: type[BaseModel] = Profile
        parts = field.split(".")
        if parts[0] not in Profile.model_fields or parts[-1] in ("py", "md", "json", "yaml"):
            continue
        for part in parts:
            assert part in model.model_fields, f"{field}: no such field"
            annotation = model.model_fields[part].annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                model = annotation


@every_document
def test_example_profiles_are_valid(document: Path) -> None:
    """Catches: an example that is refused when it is copied."""
    for language, content in blocks(document):
        if language == "yaml" and content.startswith("name:"):
            build_splits(profiles.load(content))


def test_the_whole_summary_is_described() -> None:
    """Catches: a field that other programs may rely on and nobody explains."""
    text = "".join(content for _, content in blocks(ROOT / "docs" / "run-explained.md"))

    def fields(model: type[BaseModel]) -> Iterator[str]:
        for name, field in model.model_fields.items():
            yield name
            for part in (field.annotation, *get_args(field.annotation)):
                if isinstance(part, type) and issubclass(part, BaseModel):
                    yield from fields(part)

    missing = {name for name in fields(Summary) if f'"{name}"' not in text}
    assert not missing


def test_contributing_fits_one_page() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= PAGE_LINES


def test_the_readme_leads_with_the_two_commands() -> None:
    first = blocks(ROOT / "README.md")[0][1]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]


@every_document
def test_nothing_waits_to_be_filled_in(document: Path) -> None:
    """Catches: a document that is published with a placeholder in it."""
    assert not re.search(r"RESULTS_TABLE|TODO|FIXME|XXX|TBD", document.read_text(encoding="utf-8"))


def test_decisions_are_numbered_whole_and_listed() -> None:
    """Catches: two of one number, a record without its reasons, one that the list does not know."""
    assert [path.name[:5] for path in DECISIONS] == [f"{number:04}-" for number in range(1, len(DECISIONS) + 1)]
    index = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    for path in DECISIONS:
        text = path.read_text(encoding="utf-8")
        title = text.splitlines()[0].removeprefix("# ")
        assert title.startswith(path.name[:4]), f"{path.name}: the title begins with the number"
        headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
        assert [heading for heading in headings if heading in DECISION_PARTS] == DECISION_PARTS, path.name
        assert f"[{title[5:]}]({path.name})" in index, f"{path.name} is not in the list"


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text and "APPENDIX: How to apply" in text

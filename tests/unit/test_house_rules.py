"""The house rules that no linter checks: sizes, names, imports, and what may not be caught or loaded silently."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("gripline", "components", "pipelines", "benchmarks")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
SAYS_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc", "tools", "base"}
SAYS_NOTHING_OF_A_CLASS = ("Manager", "Helper", "Mixin", "Utils")
CONFIGS = {"config", "profile", "section", "stage"}
SIMULATORS = {"mujoco", "metaworld", "gymnasium"}
LEARNING = {"torch", "transformers", "peft"}
MAY_NOT_IMPORT = {
    "gripline/envs": LEARNING | {"gripline.policies", "gripline.rollout"},
    "gripline/demos": LEARNING | SIMULATORS,
    "gripline/policies": SIMULATORS | {"gripline.envs", "gripline.rollout"},
    "gripline/algorithms": SIMULATORS | {"ray", "mlflow", "gripline.envs", "gripline.policies", "gripline.rollout"},
}
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def place(path: Path, node: ast.stmt | ast.expr | ast.excepthandler) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def nodes(*kinds: type[ast.AST]) -> Iterator[tuple[Path, ast.AST]]:
    """Every node of these kinds in every file."""
    for path in FILES:
        for node in ast.walk(parse(path)):
            if isinstance(node, kinds):
                yield path, node


def imported(node: ast.AST) -> list[str]:
    """The modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert isinstance(node, ast.ImportFrom)
    return [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]


def called(node: ast.AST) -> str:
    """'torch.load' of `torch.load(…)`; empty for what is not a plain dotted name."""
    assert isinstance(node, ast.Call)
    return ast.unparse(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else ""


def test_the_rules_are_applied_to_something() -> None:
    """Catches: a moved folder, after which every rule below holds for want of files."""
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(FOLDERS)


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {f"{path.relative_to(ROOT)}: {n}" for path, n in lengths.items() if n > MAX_FILE_LINES}


def test_functions_are_short() -> None:
    long = []
    for path, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
        length = node.end_lineno - node.lineno + 1
        if length > MAX_FUNCTION_LINES:
            long.append(f"{place(path, node)} {node.name}: {length}")
    assert not long


def test_names_say_what_is_inside() -> None:
    """Catches: a drawer for what found no better place."""
    assert not [path for path in FILES if path.stem in SAYS_NOTHING]
    for path, node in nodes(ast.ClassDef):
        assert isinstance(node, ast.ClassDef)
        assert not node.name.endswith(SAYS_NOTHING_OF_A_CLASS), f"{place(path, node)} {node.name}"


@pytest.mark.parametrize("folder", sorted(MAY_NOT_IMPORT))
def test_simulators_and_networks_stay_apart(folder: str) -> None:
    """Catches: torch in an environment worker, MuJoCo beside the policy; imports inside of functions count too."""
    forbidden = MAY_NOT_IMPORT[folder]
    for path, node in nodes(ast.Import, ast.ImportFrom):
        if path.is_relative_to(ROOT / folder):
            assert isinstance(node, ast.Import | ast.ImportFrom)
            for module in imported(node):
                prefixes = {".".join(module.split(".")[:length]) for length in range(1, module.count(".") + 2)}
                assert not prefixes & forbidden, f"{place(path, node)} imports {module}"


def test_a_configuration_is_never_probed() -> None:
    """Catches: `config.get("lr", 1)` and `getattr(config, "lr", 1)`: a misspelt field becomes a silent default."""
    for path, node in nodes(ast.Call):
        assert isinstance(node, ast.Call)
        name, arguments = called(node), [ast.unparse(argument) for argument in node.args]
        owner, _, method = name.rpartition(".")
        probes = method == "get" and owner.rpartition(".")[2].strip("_") in CONFIGS
        probes |= name == "getattr" and arguments[0].rpartition(".")[2].strip("_") in CONFIGS
        assert not probes, f"{place(path, node)}: {ast.unparse(node)}"


def test_broad_except_says_why() -> None:
    """Catches: an error that is swallowed by the way."""
    for path, node in nodes(ast.ExceptHandler):
        assert isinstance(node, ast.ExceptHandler)
        kinds = {"BaseException", "Exception"} & {
            ast.unparse(part) for part in ast.walk(node.type or ast.Name("Exception")) if isinstance(part, ast.Name)
        }
        lines = path.read_text(encoding="utf-8").splitlines()[node.lineno - 1 : node.body[0].lineno]
        assert not kinds or any("#" in line for line in lines), f"{place(path, node)} has no comment"


def test_nothing_is_unpickled() -> None:
    """Catches: a checkpoint that runs code when it is read."""
    for path, node in nodes(ast.Import, ast.ImportFrom):
        assert isinstance(node, ast.Import | ast.ImportFrom)
        assert not {"pickle", "dill", "cloudpickle", "joblib"} & set(imported(node)), place(path, node)
    for path, node in nodes(ast.Call):
        assert isinstance(node, ast.Call)
        if called(node) == "torch.load":
            safe = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "weights_only"]
            assert safe == ["True"], f"{place(path, node)} without weights_only=True"


def test_tests_use_fakes_not_mocks() -> None:
    """Catches: a test that only repeats what the code does."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not any(module.startswith(("unittest.mock", "mock")) for module in imported(node)), path

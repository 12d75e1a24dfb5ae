"""The plan of the house, held by the build: floors, sizes, and what may not appear.

Thresholds may only tighten.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import shuzhai

ROOT = Path(shuzhai.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60
MAX_SNIFFS = 8  # getattr, hasattr and setattr in the whole package
# Where anything that goes wrong must be caught: the engine thread, a thread that loads, the HTTP
# boundary, and one library that raises bare Exception for input it cannot read.
BROAD_HANDLERS = {
    "frontend/async_engine.py": 1,
    "frontend/tokenizer.py": 1,
    "server/boundary.py": 1,
    "server/loading.py": 1,
}

FLOORS = [
    {"errors", "config", "checkpoint", "telemetry"},
    {"formats", "kernels", "step", "comm"},
    {"layers", "models"},
    {"engine"},
    {"frontend", "hub", "quantize", "llm"},
    {"server", "cli", "bench"},
]
# The frontend reaches the engine through these two modules, and no lower floor but the ground.
FRONTEND_MAY_IMPORT = {"engine.engine", "engine.request"}
TORCH_FREE = {"engine/request.py", "engine/block_pool.py", "engine/scheduler.py",
              "engine/check.py", "engine/memory.py", "engine/sequence.py", "engine/workspace.py",
              "engine/picture_pool.py"}  # fmt: skip


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def floor_of(module: str) -> int:
    top = module.split(".")[0]
    return next(i for i, names in enumerate(FLOORS) if top in names)


def trees() -> Iterator[tuple[str, ast.Module]]:
    for file in FILES:
        yield name_of(file), ast.parse(file.read_text(encoding="utf-8"))


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield name, node


def imports(node: ast.AST) -> Iterator[str]:
    """Full names of the modules that are imported at run time."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        yield node.module or ""
    elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
        for child in ast.iter_child_nodes(node):
            yield from imports(child)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_never_go_up(file: Path) -> None:
    name = name_of(file)
    if name == "__init__.py":
        return
    floor = floor_of(name.removesuffix(".py").replace("/", "."))
    for module in imports(ast.parse(file.read_text(encoding="utf-8"))):
        assert module != "shuzhai", f"{name} imports the whole package"
        if not module.startswith("shuzhai."):
            needs_torch = module.split(".")[0] == "torch"
            assert not (needs_torch and name in TORCH_FREE), f"{name} must not need torch"
            continue
        target = module.removeprefix("shuzhai.")
        assert floor_of(target) <= floor, f"{name} imports {module}, which is above it"
        if floor == 4 and floor_of(target) in (1, 2, 3):
            assert target in FRONTEND_MAY_IMPORT, f"{name} imports {module}"


def test_functions_and_files_are_short() -> None:
    long_files = [
        name_of(f) for f in FILES if len(f.read_text("utf-8").splitlines()) > MAX_FILE_LINES
    ]
    assert long_files == []
    lengths = [(n, f.name, f.end_lineno - f.lineno + 1) for n, f in functions()]
    assert [x for x in lengths if x[2] > MAX_FUNCTION_LINES] == []
    assert sum(x[2] <= 40 for x in lengths) >= 0.95 * len(lengths)


def test_everything_is_annotated() -> None:
    missing = []
    for name, function in functions():
        spec = function.args
        arguments = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
        bare = [a.arg for a in arguments if a and not a.annotation and a.arg not in ("self", "cls")]
        if bare or function.returns is None:
            missing.append((name, function.name, bare))
    assert missing == []


def test_no_globals_and_no_imports_inside_functions() -> None:
    found = [
        (name, function.name, type(node).__name__)
        for name, function in functions()
        for node in ast.walk(function)
        if isinstance(node, (ast.Global, ast.Import, ast.ImportFrom))
    ]
    assert found == []


def test_the_environment_is_read_in_one_file() -> None:
    readers = {
        name
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    }
    assert readers == {"config.py"}


def test_broad_handlers_stand_where_they_must() -> None:
    found: dict[str, int] = {}
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                caught = {n.id for n in ast.walk(node.type or node) if isinstance(n, ast.Name)}
                if node.type is None or caught & {"Exception", "BaseException"}:
                    found[name] = found.get(name, 0) + 1
    assert found == BROAD_HANDLERS


def test_types_are_not_sniffed() -> None:
    sniffs = [
        (name, node.lineno)
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("getattr", "hasattr", "setattr")
    ]
    assert len(sniffs) <= MAX_SNIFFS, sniffs


def test_public_names_are_sorted_and_there() -> None:
    assert sorted(shuzhai.__all__, key=lambda n: (not n.isupper(), n)) == shuzhai.__all__
    assert all(hasattr(shuzhai, name) for name in shuzhai.__all__)

"""Imports go one way: no cycle between modules, none from a lower layer to a higher one, and no file that grows without a reason.

Imports are read, not executed, those inside functions too; what stands under ``if TYPE_CHECKING`` does not run, and is left out.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Low to high. A module imports lower layers and its own package; packages of one layer do not import each other.
LAYERS = (
    ("avfmae_kernels",),
    ("avfmae.config", "avfmae.bounds", "avfmae.console", "avfmae.extras", "avfmae.files", "avfmae.losses", "avfmae.masking",
     "avfmae.metrics", "avfmae.options", "avfmae.processes", "avfmae.recipes", "avfmae.world"),
    ("avfmae.data", "avfmae.models"),
    ("avfmae.checkpoints", "avfmae.datasets"),
    ("avfmae.engines",),
    ("avfmae.training",),
    ("avfmae.tasks",),
    ("avfmae.viz",),
    ("avfmae.inference",),
    ("avfmae.stages",),
    ("avfmae.demo", "avfmae.doctor"),
    ("avfmae_benchmarks",),
    ("avfmae.cli", "avfmae.help", "avfmae.__main__"),
)  # fmt: skip
FREE = {"avfmae.config", "avfmae.cli"}  # the layers of these are single files, which may import each other
MAY_IMPORT_CPU_ENGINES = ("avfmae.engines", "avfmae.cli", "avfmae_benchmarks")
FOLDERS = {"avfmae": "avfmae", "avfmae_kernels": "avfmae_kernels", "benchmarks": "avfmae_benchmarks"}
LONGEST = 400  # lines


def module_files() -> dict[str, Path]:
    """Module name -> file."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


FILES = module_files()


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test).rpartition(".")[2] == "TYPE_CHECKING"


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below ``node`` but for the bodies of ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and is_type_checking(child.test):
            for other in child.orelse:
                yield other
                yield from executed(other)
            continue
        yield child
        yield from executed(child)


def named_modules(node: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """What an import statement names: ``from a import b`` gives a.b, which is a module or a name in a."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = module.split(".")
            parts = parts[: len(parts) - node.level + is_package]
            base = ".".join([*parts, *filter(None, [base])])
        yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of(source: str, module: str, files: dict[str, Path], is_package: bool = False) -> set[str]:
    """Which of ``files`` a module imports."""
    found = set()
    for node in executed(ast.parse(source)):
        for name in named_modules(node, module, is_package):
            parent, _, last = name.rpartition(".")
            if last.startswith("_") and name not in files and parent in files:
                continue  # a compiled module
            while name and name not in files:
                name = name.rpartition(".")[0]
            if name and name != module:
                found.add(name)
    return found


def all_imports() -> dict[str, set[str]]:
    return {m: imports_of(path.read_text(), m, FILES, path.name == "__init__.py") for m, path in FILES.items()}


IMPORTS = all_imports()


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def place(module: str) -> tuple[int, str]:
    """The layer of a module, and the package of that layer that it belongs to."""
    for number, layer in enumerate(LAYERS):
        for package in layer:
            if inside(module, package):
                return number, package
    raise AssertionError(f"{module}: add it to LAYERS")


def find_cycle(imports: dict[str, set[str]]) -> list[str]:
    """One cycle, its first module again at the end; nothing if there is none."""
    done, path = set(), []

    def visit(module: str) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        path.append(module)
        for other in sorted(imports.get(module, ())):
            if cycle := visit(other):
                return cycle
        path.pop()
        done.add(module)
        return []

    return next((cycle for module in sorted(imports) if (cycle := visit(module))), [])


def upward(imports: dict[str, set[str]]) -> list[str]:
    """The imports of a higher layer, or of another package of the same one."""
    found = []
    for module, others in imports.items():
        if module == "avfmae":  # its names are loaded lazily, from every layer
            continue
        for other in others - {"avfmae"}:
            (mine, package), (its, other_package) = place(module), place(other)
            if its > mine or (its == mine and package != other_package and LAYERS[its][0] not in FREE):
                found.append(f"{module} -> {other}")
    return sorted(found)


def test_no_modules_import_each_other():
    assert sum(map(len, IMPORTS.values())) > 300  # not vacuous
    assert find_cycle(IMPORTS) == []


def test_no_module_imports_a_higher_layer():
    assert upward(IMPORTS) == []


def test_engines_for_cpus_are_imported_where_engines_are_chosen():
    found = [
        f"{module} -> {other}"
        for module, others in IMPORTS.items()
        for other in others
        if inside(other, "avfmae.engines.cpu") and not any(inside(module, p) for p in MAY_IMPORT_CPU_ENGINES)
    ]
    assert found == []


def test_no_module_has_a_name_of_the_standard_library():
    names = {module: module.rpartition(".")[2] for module in FILES if "." in module}
    assert [module for module, name in names.items() if name in sys.stdlib_module_names and name != "__main__"] == []


def first_lines(path: Path) -> str:
    return "".join(path.read_text().splitlines(keepends=True)[:12]).lower()


def test_a_long_file_says_why():
    """In its first lines, in a sentence with "over 400 lines"."""
    source = [*FILES.values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "tools").rglob("*.py"), ROOT / "setup.py"]
    source += [path for suffix in ("cpp", "h", "cu", "cuh") for path in (ROOT / "csrc").rglob(f"*.{suffix}")]
    long = [path for path in source if len(path.read_text().splitlines()) > LONGEST]
    assert [str(path.relative_to(ROOT)) for path in long if f"over {LONGEST} lines" not in first_lines(path)] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import avfmae.config", {"avfmae.config"}),
        ("from avfmae.data import batch", {"avfmae.data.batch"}),
        ("def f():\n    from avfmae.data.batch import Batch", {"avfmae.data.batch"}),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import avfmae.config\nelse:\n    import avfmae.cli",
            {"avfmae.cli"},
        ),
        ("from . import loader", {"avfmae.data.loader"}),
        ("from ..config import ModelConfig", {"avfmae.config"}),
        ("import torch", set()),
    ],
    ids=["import", "from", "in a function", "type checking", "relative", "relative, up", "another's"],
)
def test_imports_are_read(source, expected):
    assert imports_of(source, "avfmae.data.splits", FILES) == expected


def test_a_cycle_and_an_arrow_up_are_found():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert upward({"avfmae.config": {"avfmae.cli"}, "avfmae.cli": {"avfmae.config"}}) == ["avfmae.config -> avfmae.cli"]
    assert upward({"avfmae.data.batch": {"avfmae.models.lgi"}}) == ["avfmae.data.batch -> avfmae.models.lgi"]

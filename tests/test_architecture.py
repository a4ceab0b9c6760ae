"""The law of imports, derived from the tree: no cycle between rooms nor inside them; heavy packages have owners."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ray_ft

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ray_ft"
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
RAY_ROOMS = {"backends", "prediction", "serving"}
MAX_ROOMS, MAX_LINES, MAX_FUNCTION = 25, 400, 60


def list_imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, inside functions too; `from a import b` names `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports by a relative name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def find_module(name: str) -> str | None:
    """The module of the package that a dotted name lies in; a public name of the package lies in its owner."""
    if name.startswith("ray_ft.") and (owner := ray_ft._OWNERS.get(name.split(".")[1])):
        name = f"ray_ft.{owner}"
    while name and name not in MODULES and f"{name}.__init__" not in MODULES:
        name = name.rpartition(".")[0]
    return (name if name in MODULES else f"{name}.__init__") if name else None


def room_of(module: str) -> str:
    """The file or folder at the top of the package that holds a module."""
    return module.split(".")[1]


IMPORTS: Mapping[str, set[str]] = {
    module: {found for name in list_imports(path) if (found := find_module(name))} - {module}
    for module, path in MODULES.items()
}


def test_rooms_import_lower_rooms_only() -> None:
    rooms: dict[str, set[str]] = {}
    for module, imported in IMPORTS.items():
        rooms.setdefault(room_of(module), set()).update(set(map(room_of, imported)) - {room_of(module)})
    TopologicalSorter(rooms).prepare()  # raises CycleError, which names the cycle


def test_modules_import_lower_modules_only() -> None:
    """Inside folders too; a folder's `__init__` stands above the modules that it names."""
    TopologicalSorter(IMPORTS).prepare()


@pytest.mark.parametrize("name", ["ray_ft.errors.UserError", "ray_ft.Ensemble", "ray_ft.config.load_config"])
def test_the_law_sees_every_form_of_import(name: str) -> None:
    assert find_module(name) is not None
    assert find_module("ray_ft.Ensemble") == "ray_ft.ensemble.__init__"
    assert find_module("numpy.array") is None


def test_the_package_has_few_rooms() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()} - {"__pycache__"}
    assert len(rooms) <= MAX_ROOMS, sorted(rooms)


def test_the_diffraction_domain_is_known_to_the_config_alone() -> None:
    """The others ask `find_domain`, which imports it by its name."""
    for module, imported in IMPORTS.items():
        if any(name.startswith("ray_ft.domains.diffraction") for name in imported):
            assert module.startswith(("ray_ft.config.", "ray_ft.domains.diffraction.")), module


def test_objectives_are_a_low_room_and_asked_by_their_metric() -> None:
    """A public name of regression's is the exception: what users have known as `ray_ft.ensemble.Prediction`."""
    for module, imported in IMPORTS.items():
        rooms = set(map(room_of, imported)) - {"objectives"}
        if room_of(module) == "objectives":
            assert rooms <= {"domains", "drawing", "errors", "statistics"}, module
        elif module != "ray_ft.ensemble.__init__":
            assert not any(name.startswith("ray_ft.objectives.regression") for name in imported), module


def test_few_rooms_import_ray() -> None:
    for module, path in MODULES.items():
        if any(name.split(".")[0] == "ray" for name in list_imports(path)):
            assert room_of(module) in RAY_ROOMS, module


def test_help_loads_neither_torch_nor_ray() -> None:
    code = "import sys, ray_ft.cli; sys.exit(bool({'torch', 'ray', 'sklearn'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_config_loads_without_torch() -> None:
    code = "import sys; from ray_ft.config import load_config; load_config(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_module_is_longer_than_400_lines_and_no_function_than_60() -> None:
    for path in MODULES.values():
        source = path.read_text()
        assert source.count("\n") <= MAX_LINES, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION, f"{path}: {node.name}"

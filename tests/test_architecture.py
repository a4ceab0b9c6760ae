"""Rows of modules: each imports lower rows only, and heavy packages have one owner."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "ray_ft"
ROWS = {
    0: ("errors", "symmetry"),
    1: ("config", "folds", "metrics", "storage", "provenance", "intervals", "novelty"),
    2: ("strategies", "models", "data", "paths", "plan", "features", "scores", "comparison", "selection"),
    3: ("training", "checkpoint", "journal", "results", "baselines", "combination"),
    4: ("task", "progress"),
    5: ("squad", "summary"),
    6: ("candidate", "ensemble", "run_comparison"),
    7: ("evaluation", "export", "suggestion", "streaming", "requests"),
    8: ("runner",),
    9: ("cross_validation",),
    10: ("sample_size",),
    11: ("report",),
    12: ("cli", "__init__"),
    13: ("__main__",),
}
ROW_OF = {module: row for row, modules in ROWS.items() for module in modules}


def imports(path: Path) -> set[str]:
    """Names of the modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_modules_import_lower_rows_only() -> None:
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in imports(path):
            if name.startswith("ray_ft.") and (other := name.split(".")[1]) != module:
                assert ROW_OF[other] < ROW_OF[module], f"{path.name} imports {name}"


def test_only_the_runner_imports_ray() -> None:
    for path in PACKAGE.rglob("*.py"):
        if any(name.split(".")[0] == "ray" for name in imports(path)):
            assert path.parent.name == "runner"


def test_help_loads_neither_torch_nor_ray() -> None:
    code = "import sys, ray_ft.cli; sys.exit(bool({'torch', 'ray', 'sklearn'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_module_is_longer_than_400_lines_and_no_function_than_60() -> None:
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text()
        assert source.count("\n") <= 400, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"

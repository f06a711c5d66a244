"""The import direction: a module imports only from lines above its own, and modules of one line not from each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ssl_ray"

# One line a layer, from the bottom up. A folder stands for all modules in it, which may import each other.
LAYERS = [
    ["redaction", "entry"],
    ["errors", "values"],
    ["paths"],
    ["config", "schema", "randomness", "progress", "machine", "text"],
    ["explain"],
    ["damage", "distributed"],
    ["filesystems"],
    ["storage", "scale", "subset", "permutations"],
    ["label_files", "named_files"],
    ["settings"],
    ["artifacts", "samples", "cluster", "lock"],
    ["tasks", "views", "selection", "losses", "precision", "health", "probes", "clustering", "grids", "worth"],
    ["nets"],
    ["methods", "models"],
    ["data"],
    ["train", "stage"],
    ["report"],
    ["stages"],
    ["recipes", "planning"],
    ["cli"],
    ["tune"],
    ["pipelines"],
    ["commands"],
    ["__main__"],
    ["spot_notice"],  # stands alone: it is copied to nodes
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
NEWEST_RAY = "2.60.0"
"""The newest version of Ray that these tests ran with; the lock file has it."""

RAY_ALLOWED = {"data", "train", "tune", "cluster", "spot_notice"}


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    own = part(path)
    assert own in RANK, f"{own} is in no layer; give it one"
    for name in imports(path):
        assert name.split(".")[0] not in ("jobs", "tests", "benchmarks"), f"{path} imports {name}, which is not installed"
        if name.split(".")[0] == "ray":
            assert own in RAY_ALLOWED, f"{path.name} imports {name}; ray is for {sorted(RAY_ALLOWED)}"
        if name.startswith("ssl_ray."):
            other = name.split(".")[1]
            assert other == own or RANK[other] < RANK[own], f"{own} (line {RANK[own]}) imports {other} (line {RANK[other]})"


def test_no_file_is_a_smell() -> None:
    long = [str(path) for path in modules() if len(path.read_text().splitlines()) > 400]
    assert not long
    assert not list(PACKAGE.rglob("utils.py"))


def test_the_lock_file_has_the_newest_ray_that_was_tested() -> None:
    lock = (PACKAGE.parent / "requirements.lock").read_text().splitlines()
    assert f"ray=={NEWEST_RAY}" in lock


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_ray_is_used_through_its_public_interface(path: Path) -> None:
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] != "ray" or not any(part.startswith("_") for part in parts), f"{path.name} imports {name}"

"""The house stands: data flows through the rooms one way, and light commands stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "exporter"
ROOMS = ("models", "compress", "graph", "quantize", "devices", "judge", "ship", "report")
NOUNS = (
    "errors",
    "progress",
    "toml",
    "recipe",
    "budget",
    "target",
    "cache",
    "artifact",
    "signature",
    "readings",
)
TOP = (
    "stages",
    "device_runs",
    "surveying",
    "supporting",
    "checkpoints",
    "building",
    "rounds",
    "attempts",
    "choose",
    "stability",
    "describing",
    "flips",
    "shipping",
    "pipeline",
    "evidence",
    "remains",
    "checked_devices",
    "recheck",
    "running",
    "mismatches",
    "claims",
    "verifying",
    "explaining",
    "comparing",
    "planning",
    "weighing",
    "ranking",
    "recovering",
    "display",
    "exits",
    "cli",
)
HEAVY = ("torch", "transformers", "datasets", "optimum")


def _level(module: str) -> int:
    """0 for nouns, 1.. for rooms in order, then pipeline and the rest of the top."""
    part = module.split(".")[1] if "." in module else ""
    if part in NOUNS:
        return 0
    if part in ROOMS:
        return 1 + ROOMS.index(part)
    return 20 + (TOP.index(part) if part in TOP else len(TOP))


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {n for n in found if n.startswith("exporter.") and n != "exporter.__version__"}


def _sources() -> list[Path]:
    return sorted(
        p for p in PACKAGE.rglob("*.py") if "templates" not in p.parts and p.name != "__init__.py"
    )


@pytest.mark.parametrize("path", _sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = "exporter." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for imported in _imports(path):
        assert _level(imported) <= _level(own), f"{own} may not import {imported}"


@pytest.mark.parametrize("room", ["devices", "judge", "ship", "report"])
def test_judging_needs_no_training_framework(room: str) -> None:
    """Importing every module of the later rooms leaves the heavy libraries alone."""
    modules = [
        "exporter." + ".".join(p.relative_to(PACKAGE).with_suffix("").parts)
        for p in sorted((PACKAGE / room).glob("*.py"))
        if p.name not in ("__init__.py", "runner.py")
    ]
    code = (
        f"import importlib, sys; [importlib.import_module(m) for m in {modules!r}]; "
        f"sys.exit(', '.join(h for h in {HEAVY!r} if h in sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

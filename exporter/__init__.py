"""Make a trained model fit a device, and prove that it is no worse.

    import exporter

    result = exporter.export("my-model", target="mobile", data="reviews.jsonl")
    result.verdict      # "PASS", "FAIL" or "INCONCLUSIVE"
    result.directory    # what ships

Names are loaded when they are first used, so that `import exporter` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.artifact import Artifact, load_artifact
    from exporter.comparing import compare
    from exporter.errors import ExporterError, InputError
    from exporter.explaining import explain
    from exporter.pipeline import Result, export
    from exporter.planning import Plan, plan
    from exporter.ranking import importance
    from exporter.recheck import check
    from exporter.recipe import Recipe, load_recipe
    from exporter.recovering import Recovery, fine_tune
    from exporter.report.comparison import Comparison
    from exporter.report.explanation import Explanation
    from exporter.target import Target, load_target, target_names
    from exporter.verifying import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "Comparison",
    "Explanation",
    "ExporterError",
    "InputError",
    "Plan",
    "Recipe",
    "Recovery",
    "Result",
    "Target",
    "Verification",
    "check",
    "compare",
    "explain",
    "export",
    "fine_tune",
    "importance",
    "load_artifact",
    "load_recipe",
    "load_target",
    "plan",
    "target_names",
    "verify",
]

_HOME = {
    "Artifact": "artifact",
    "Comparison": "report.comparison",
    "Explanation": "report.explanation",
    "ExporterError": "errors",
    "InputError": "errors",
    "Plan": "planning",
    "Recipe": "recipe",
    "Recovery": "recovering",
    "Result": "pipeline",
    "Target": "target",
    "Verification": "verifying",
    "check": "recheck",
    "compare": "comparing",
    "explain": "explaining",
    "export": "pipeline",
    "fine_tune": "recovering",
    "importance": "ranking",
    "load_artifact": "artifact",
    "load_recipe": "recipe",
    "load_target": "target",
    "plan": "planning",
    "target_names": "target",
    "verify": "verifying",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"exporter.{_HOME[name]}"), name)
    raise AttributeError(f"module 'exporter' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)

"""`package.module:function`: the user's own code as a source of a model or of data."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exporter.errors import InputError

_SPEC = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_function_spec(text: str) -> bool:
    """True when `text` has the form `package.module:function`."""
    return _SPEC.fullmatch(text) is not None


def import_function(spec: str, error: type[InputError]) -> Callable[[], Any]:
    """The function that `package.module:function` names; modules of the working directory count.

    Raises:
        InputError: of the type `error`, when module or function is not there.
    """
    module_name, _, function_name = spec.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as reason:
        raise error(
            spec,
            f"module {module_name} must be importable",
            got=str(reason),
            remedy="run from its folder or install its package.",
        ) from reason
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise error(
            spec,
            f"{module_name} must define the function {function_name}",
            got=type(function).__name__ if function is not None else None,
            remedy="name a function that takes no arguments.",
        )
    called: Callable[[], Any] = function
    return called

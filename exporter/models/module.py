"""A module that the user's own function builds."""

from __future__ import annotations

import hashlib
import inspect
import site
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import ModelError
from exporter.models.examples import Feeds
from exporter.models.imported import import_function
from exporter.models.runner import forward_names, torch_run
from exporter.models.weights import nan_error

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BuiltModule:
    """What a `package.module:function` returned, checked.

    Attributes:
        module: float32, in evaluation mode.
        example_inputs: named by `forward`'s parameters, with the batch axis in front.
        content_hash: SHA-256 over the weights, the shapes of the inputs, the user's own code and
            what the module answers.
        config: the module's configuration when it is a Hugging Face one, else {}.
    """

    module: torch.nn.Module
    example_inputs: Feeds
    content_hash: str
    config: dict[str, Any]


def build_module(spec: str) -> BuiltModule:
    """Call `package.module:function` for a module and its example inputs.

    The inputs are a mapping by name, a tuple in the order of `forward`, or one tensor.

    Raises:
        ModelError: it cannot be imported, returns something else, or its weights hold NaN.
    """
    import torch

    function = import_function(spec, ModelError)
    returned = function()
    if not (isinstance(returned, tuple) and len(returned) == 2):
        raise _wrong(spec, f"a {type(returned).__name__}")
    module, inputs = returned
    if not isinstance(module, torch.nn.Module):
        raise _wrong(spec, f"a {type(module).__name__} first")
    module = module.float().eval()
    check_finite(spec, module)
    feeds = _named(spec, module, inputs)
    to_dict = getattr(getattr(module, "config", None), "to_dict", None)
    return BuiltModule(
        module,
        feeds,
        _hash(function, module, feeds),
        to_dict() if callable(to_dict) else {},
    )


def check_finite(place: str, module: torch.nn.Module) -> None:
    """Refuse a module whose parameters hold NaN or inf.

    Raises:
        ModelError: naming the first such parameter.
    """
    import torch

    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise nan_error(place, name)


def _named(spec: str, module: torch.nn.Module, inputs: Any) -> Feeds:
    if isinstance(inputs, Mapping):
        named = dict(inputs)
    else:
        values = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        named = dict(zip(forward_names(module), values, strict=False))
        if len(named) != len(values):
            raise _wrong(spec, f"{len(values)} inputs for {len(named)} parameters of forward")
    feeds = {str(name): np.asarray(value) for name, value in named.items()}
    for name, array in feeds.items():
        if array.dtype == object or array.ndim == 0:
            raise _wrong(spec, f"input {name} that is no tensor with a batch axis")
    if not feeds:
        raise _wrong(spec, "no example inputs")
    return feeds


def _wrong(spec: str, got: str) -> ModelError:
    return ModelError(
        spec,
        "must return (torch.nn.Module, example inputs)",
        got=got,
        remedy="return the module and a tuple or dict of tensors with a batch axis.",
    )


def _hash(function: Callable[[], Any], module: torch.nn.Module, feeds: Feeds) -> str:
    digest = hashlib.sha256(type(module).__qualname__.encode())
    # repr tells the layers and their options, which weights alone do not (a stride, a slope).
    digest.update(repr(module).encode())
    for name, tensor in module.state_dict().items():
        array = tensor.detach().cpu().numpy()
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    for name, array in sorted(feeds.items()):
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
    # What forward computes shows in neither: its code does, and for what that reads (a constant
    # of another file, a plain attribute) its answer.
    classes = {kind for part in module.modules() for kind in type(part).__mro__}
    digest.update("".join(sorted({_source_hash(o) for o in (function, *classes)})).encode())
    digest.update(" ".join(_answers(module, feeds)).encode())
    return digest.hexdigest()


@cache  # as it was imported: an edit during a run is the next run's
def _source_hash(defined: Any) -> str:
    """SHA-256 over the file that defines a class or function; "" for an installed one or none."""
    try:
        path = Path(inspect.getfile(defined)).resolve()
        if any(path.is_relative_to(place) for place in _installed()):
            return ""
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (TypeError, OSError):
        return ""  # built in, or typed into a prompt


@cache
def _installed() -> tuple[Path, ...]:
    """Where installed packages lie, whose versions tell their code."""
    import torch

    paths = sysconfig.get_paths()
    places = [*site.getsitepackages(), site.getusersitepackages(), str(Path(torch.__file__).parent)]
    places += [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(Path(place).resolve() for place in places)


def _answers(module: torch.nn.Module, feeds: Feeds) -> Iterator[str]:
    """Each output's name, shape and three rounded numbers; nothing when it does not run.

    The inputs have the shapes of `feeds` and none of their values, which may be random. Numbers
    are few and round, so that another order of summation rarely makes it another model.
    """
    import torch

    rng = np.random.default_rng(0)
    inputs = {
        name: rng.standard_normal(array.shape).astype(array.dtype)
        if np.issubdtype(array.dtype, np.floating)
        else np.ones_like(array)
        for name, array in sorted(feeds.items())
    }
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs = torch_run(module)(inputs)
    except Exception:  # the user's code may raise anything; export will tell what is wrong
        return
    for name, array in outputs.items():
        flat = array.ravel().astype(np.float64)  # (values,)
        norm = float(np.linalg.norm(flat))
        yield f"{name} {array.shape} {norm:.3g}"
        for _ in range(2):
            along = float(rng.standard_normal(flat.size) @ flat)
            yield f"{along / norm if norm else 0.0:.3f}"

"""Run: a batch of feeds in, named outputs out, the same for torch modules and ONNX files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.models.examples import Feeds, Outputs

if TYPE_CHECKING:
    import torch

Run = Callable[[Feeds], Outputs]

# What a bare tensor (or the first of a tuple) that a module returns is called.
FIRST_OUTPUT = "logits"


def torch_run(module: torch.nn.Module, *, threads: int | None = None) -> Run:
    """A Run of a torch module: no gradients, inputs that `forward` does not take are dropped.

    Args:
        threads: threads during each call; None leaves torch's setting.

    Outputs are the tensors of a ModelOutput or mapping under their own names; a bare tensor,
    or the first of a tuple, is called `logits`, later ones `output_1`, `output_2` ...
    """
    import torch

    accepted = forward_names(module)
    extra: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}

    def run(feeds: Feeds) -> Outputs:
        kept = {
            name: torch.from_numpy(np.array(a)) for name, a in feeds.items() if name in accepted
        }
        before = torch.get_num_threads()
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            with torch.no_grad():
                outputs = named_outputs(module(**kept, **extra))
        finally:
            if threads is not None:
                torch.set_num_threads(before)
        return {name: _array(tensor) for name, tensor in outputs.items()}

    return run


def forward_names(module: torch.nn.Module) -> tuple[str, ...]:
    """Names of the inputs that the module's `forward` takes, in order."""
    import inspect

    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind not in variadic)


def named_outputs(outputs: Any) -> dict[str, torch.Tensor]:
    """The tensors that a module returned, by name; everything else (such as caches) left out."""
    import torch

    if isinstance(outputs, torch.Tensor):
        return {FIRST_OUTPUT: outputs}
    if isinstance(outputs, Mapping):
        return {k: v for k, v in outputs.items() if isinstance(v, torch.Tensor)}
    return {
        FIRST_OUTPUT if i == 0 else f"output_{i}": value
        for i, value in enumerate(outputs)
        if isinstance(value, torch.Tensor)
    }


def main_output(outputs: Mapping[str, Any], *names: str) -> Any:
    """The output called by the first of `names` that is there, else the first output."""
    for name in names:
        if name in outputs:
            return outputs[name]
    return next(iter(outputs.values()))


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array

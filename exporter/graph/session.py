"""Run an ONNX model on onnxruntime, the way it ships.

A session preference that was measured to be faster travels with the model as `session.json`,
and everything that opens the model honours it: what is measured is what ships.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import ModelError
from exporter.graph.model import OnnxModel
from exporter.models.examples import Feeds, Outputs

SESSION_FILE = "session.json"
PAST_PREFIX = "past_key_values."
PRESENT_PREFIX = "present."

_DTYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}


@dataclass(frozen=True)
class Port:
    """One input or output of a graph; a dynamic axis is a name or None."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


class OnnxRun:
    """A session as a function from feeds to named outputs.

    Calling it drops feeds that the graph does not take, casts the others to the graph's types,
    and makes what a language model's graph asks for beyond tokens: an empty cache and
    position ids. The cache (`present.*`) is left out of what a call returns; `with_cache`
    returns it too, under the names the next step feeds it by.

    Attributes:
        inputs: the graph's inputs by name, in order.
        outputs: the graph's outputs by name, in order.
        session: the onnxruntime session.
    """

    def __init__(self, session: Any, place: str) -> None:
        self.session = session
        self.inputs = {p.name: Port(p.name, p.type, tuple(p.shape)) for p in session.get_inputs()}
        self.outputs = {p.name: Port(p.name, p.type, tuple(p.shape)) for p in session.get_outputs()}
        self._place = place
        self._answers = [name for name in self.outputs if not name.startswith(PRESENT_PREFIX)]
        # GroupQueryAttention with rotary inside counts positions from each row's first token and
        # reads only the number of ones of the mask: padding must be at the end of a row.
        self._right_padded = (
            any(name.startswith(PAST_PREFIX) for name in self.inputs)
            and "position_ids" not in self.inputs
        )

    def __call__(self, feeds: Feeds) -> Outputs:
        """The graph's outputs without its cache.

        Args:
            feeds: arrays with the batch axis in front.

        Raises:
            ModelError: an input that cannot be made is missing, or the graph refuses the feeds.
        """
        return self._answer(self._answers, feeds)

    def with_cache(self, feeds: Feeds) -> tuple[Outputs, Feeds]:
        """The graph's outputs, and the cache as feeds for the next step.

        `attention_mask` must span past and new tokens.
        """
        everything = self._answer(list(self.outputs), feeds)
        cache = {
            PAST_PREFIX + name[len(PRESENT_PREFIX) :]: everything.pop(name)
            for name in list(everything)
            if name.startswith(PRESENT_PREFIX)
        }
        return everything, cache

    def complete(self, feeds: Feeds) -> Feeds:
        """`feeds` as this graph takes them: cast, without strangers, with cache and positions.

        Raises:
            ModelError: an input is missing that cannot be made.
        """
        known = next((a for n, a in feeds.items() if n in self.inputs), None)
        batch = 1 if known is None else len(known)
        full: Feeds = {}
        for name, port in self.inputs.items():
            array = feeds.get(name)
            if array is None:
                array = self._made(name, port, feeds, batch)
            full[name] = np.ascontiguousarray(array, dtype=_DTYPES.get(port.dtype, array.dtype))
        return full

    def _made(self, name: str, port: Port, feeds: Feeds, batch: int) -> NDArray[Any]:
        if name.startswith(PAST_PREFIX):
            # (batch, heads, 0, head_dim): only batch and past length are dynamic
            heads, width = port.shape[1], port.shape[3]
            return np.zeros((batch, heads, 0, width), np.float32)  # type: ignore[arg-type]
        if name == "attention_mask" and "input_ids" in feeds:
            past = next((a for n, a in feeds.items() if n.startswith(PAST_PREFIX)), None)
            length = feeds["input_ids"].shape[1] + (0 if past is None else past.shape[2])
            return np.ones((batch, length), np.int64)
        if name == "position_ids" and "input_ids" in feeds:
            mask = self._made("attention_mask", port, feeds, batch)
            return position_ids(feeds.get("attention_mask", mask), feeds["input_ids"].shape[1])
        if name == "token_type_ids" and "input_ids" in feeds:
            return np.zeros_like(feeds["input_ids"])
        raise ModelError(
            self._place,
            f"needs the input '{name}'",
            got=f"only {', '.join(sorted(feeds)) or 'nothing'}",
            remedy="provide it in the data, or export the model for another task.",
        )

    def _answer(self, names: list[str], feeds: Feeds) -> Outputs:
        order = self._order(feeds) if self._right_padded else None
        if order is None:
            return self._run(names, feeds)
        moved = {
            name: _reordered(array, order) if array.shape[1:] == order.shape[1:] else array
            for name, array in feeds.items()
        }
        inverse = np.argsort(order, axis=1)
        return {
            name: _reordered(array, inverse)
            if array.ndim == 3 and array.shape[1] == order.shape[1]
            else array
            for name, array in self._run(names, moved).items()
        }

    def _order(self, feeds: Feeds) -> NDArray[np.int64] | None:
        """For each row its unmasked tokens first; None where that already holds."""
        mask = feeds.get("attention_mask")
        if mask is None or any(n.startswith(PAST_PREFIX) for n in feeds):
            return None
        holes = np.diff((mask != 0).astype(np.int8), axis=1) > 0  # a one after a zero
        return np.argsort(mask == 0, axis=1, kind="stable") if holes.any() else None

    def _run(self, names: list[str], feeds: Feeds) -> Outputs:
        full = self.complete(feeds)
        try:
            arrays = self.session.run(names, full)
        except Exception as error:  # onnxruntime's exceptions share no other base
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            shapes = ", ".join(f"{n} {a.dtype}{list(a.shape)}" for n, a in full.items())
            raise ModelError(
                self._place,
                f"must run on the inputs {shapes}",
                got=str(error).splitlines()[0],
                remedy="check the input's length against the model's limit.",
            ) from error
        return dict(zip(names, arrays, strict=True))


def position_ids(mask: NDArray[Any], length: int) -> NDArray[np.int64]:
    """Positions of the last `length` tokens, counted from each row's first unmasked one.

    Args:
        mask: (batch, past + length), zeros at padding. Padding gets position 1, as in
            transformers' `generate`.
    """
    positions = np.where(mask != 0, np.cumsum(mask != 0, axis=1) - 1, 1)
    return positions[:, positions.shape[1] - length :].astype(np.int64)


def _reordered(array: NDArray[Any], order: NDArray[np.int64]) -> NDArray[Any]:
    index = order.reshape(order.shape + (1,) * (array.ndim - 2))
    return np.take_along_axis(array, index, axis=1)


def open_run(
    model: OnnxModel, *, threads: int = 1, disabled_optimizers: tuple[str, ...] | None = None
) -> OnnxRun:
    """A session over `model` on the CPU, with the settings it ships with.

    Args:
        threads: cores one operator may use.
        disabled_optimizers: graph optimizers of onnxruntime to leave out; None takes them
            from the model's `session.json`.

    Raises:
        ModelError: onnxruntime refuses the file.
    """
    if disabled_optimizers is None:
        disabled_optimizers = read_session(model)
    session = make_session(model.path, session_options(threads), disabled_optimizers)
    return OnnxRun(session, str(model.path))


def make_session(path: Path, options: Any, disabled_optimizers: tuple[str, ...]) -> Any:
    """An onnxruntime InferenceSession on the CPU.

    Raises:
        ModelError: onnxruntime refuses the file.
    """
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(disabled_optimizers),
        )
    except Exception as error:  # onnxruntime's exceptions share no other base
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise ModelError(
            str(path),
            "must load in onnxruntime",
            got=str(error).splitlines()[0],
            remedy="export it again, or check its operators and opset.",
        ) from error


def session_options(threads: int) -> Any:
    """onnxruntime's SessionOptions as used everywhere: no spinning, one operator at a time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what it would print is in the error it raises
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def read_session(model: OnnxModel) -> tuple[str, ...]:
    """The graph optimizers that `model` ships without.

    Raises:
        ModelError: `session.json` is malformed.
    """
    path = model.directory / SESSION_FILE
    if not path.is_file():
        return ()
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["disabled_optimizers"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("disabled_optimizers must be a list of names")
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(
            str(path), "must hold session settings", got=str(error), remedy="export again."
        ) from error
    return tuple(names)


def write_session(model: OnnxModel, disabled_optimizers: tuple[str, ...]) -> None:
    """Make `model` ship without these graph optimizers; none removes the preference."""
    path = model.directory / SESSION_FILE
    if not disabled_optimizers:
        path.unlink(missing_ok=True)
        return
    text = json.dumps({"disabled_optimizers": sorted(disabled_optimizers)}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")

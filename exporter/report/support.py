"""Where the files that ship run, in words: one row a runtime or accelerator, in every format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.report.wording import number, plain

LISTS = (
    "NNAPI and CoreML go by onnxruntime's static lists of operators: no phone was asked, and "
    "shapes, attributes and caveats of single operators were not checked."
)
_ACCELERATORS = {
    "nnapi": "NNAPI (Android)",
    "coreml_neuralnetwork": "CoreML NeuralNetwork (iOS)",
    "coreml_mlprogram": "CoreML MLProgram (iOS)",
}
NAMED = 5  # operators that a sentence names


@dataclass(frozen=True)
class SupportRow:
    """One place where the model may run.

    Attributes:
        where: the runtime with the file it loads, or the accelerator.
        runs: the first release that does, or what the checker recommends.
        why: what decides it.
    """

    where: str
    runs: str
    why: str


def support_rows(support: Mapping[str, Any] | None) -> tuple[SupportRow, ...]:
    """The rows of a report's `support`; none where nobody looked."""
    return tuple(_rows(support)) if support else ()


def _rows(support: Mapping[str, Any]) -> Iterator[SupportRow]:
    named = support.get("runtime_version")
    against = (
        f"the profile names {plain(named)}" if named else "the profile names no runtime_version"
    )
    yield SupportRow(
        "onnxruntime, model.onnx",
        _since(support),
        f"{_form(support)}; {_reasons(support)}; {against}; {plain(support.get('installed'))} ran "
        "it here",
    )
    ort = support.get("ort")
    if isinstance(ort, Mapping):
        size = ort.get("size_bytes")
        mib = size / 2**20 if isinstance(size, int) else None
        apart = ort.get("difference")
        alike = (
            "answers exactly like model.onnx"
            if apart == 0
            else f"differs from model.onnx by {number(apart, 2)} of the RMS at most"
        )
        yield SupportRow(
            "onnxruntime, model.ort",
            _since(ort),
            f"optimized for {plain(ort.get('platform'))}, {number(mib)} MiB; {_reasons(ort)}; "
            f"{number(ort.get('operators'))} operators in required_operators.config; {alike}",
        )
    mobile = support.get("mobile")
    for key, title in _ACCELERATORS.items():
        found = mobile.get(key) if isinstance(mobile, Mapping) else None
        if isinstance(found, Mapping):
            yield _accelerator(title, found)


def _since(file: Mapping[str, Any]) -> str:
    oldest = file.get("oldest")
    return f"{plain(oldest)} and later" if oldest else "no release known"


def _form(file: Mapping[str, Any]) -> str:
    opsets = file.get("opsets")
    opset = opsets.get("ai.onnx") if isinstance(opsets, Mapping) else None
    return f"opset {number(opset)}, IR version {number(file.get('ir_version'))}"


def _reasons(file: Mapping[str, Any]) -> str:
    """What keeps it from an older release."""
    needs = [need for need in file.get("needs") or () if isinstance(need, Mapping)]
    if not needs:
        return "nothing in it is newer"
    newest = needs[0].get("since")
    names = _listed([_need(need) for need in needs if need.get("since") == newest])
    if not isinstance(newest, int):
        return f"no release takes {names}"
    return f"1.{newest - 1} lacks {names}"


def _need(need: Mapping[str, Any]) -> str:
    what, operator = plain(need.get("what")), plain(need.get("operator"))
    if operator == "graph":
        return what
    return operator if what == "operator" else f"{operator} ({what})"


def _accelerator(title: str, found: Mapping[str, Any]) -> SupportRow:
    if found.get("reason"):
        return SupportRow(title, "unknown", plain(found["reason"]))
    as_is, fixed = _part(found, "as_is"), _part(found, "fixed_shapes")
    best = fixed or as_is
    runs = str(as_is.get("recommendation"))
    if fixed and fixed.get("recommendation") != runs:
        runs = f"{runs}; with fixed shapes {fixed.get('recommendation')}"
    told = [f"as it is {_share(as_is)}"]
    told += [f"with fixed shapes {_share(fixed)}"] if fixed else []
    unsupported = [plain(name) for name in best.get("unsupported") or ()]
    told += [f"not taken: {_listed(unsupported)}"] if unsupported else []
    return SupportRow(title, plain(runs), "; ".join(told))


def _part(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = found.get(name)
    return part if isinstance(part, Mapping) else {}


def _share(info: Mapping[str, Any]) -> str:
    parts = info.get("partitions")
    return (
        f"{number(info.get('supported_nodes'))} of {number(info.get('nodes'))} nodes in "
        f"{number(parts)} {'piece' if parts == 1 else 'pieces'}"
    )


def _listed(names: Sequence[str]) -> str:
    short = [name.removeprefix("ai.onnx:") for name in names]
    more = f" and {len(short) - NAMED} more" if len(short) > NAMED else ""
    return ", ".join(short[:NAMED]) + more

"""Which release of onnxruntime a file needs, and what an older one would refuse in it.

Known from `exporter.graph.releases`; nothing is run. What a file needs decides whether it may ship
to a profile that names a `runtime_version`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.errors import ModelError, RuntimeTooOld
from exporter.graph.model import OnnxModel
from exporter.graph.releases import (
    ATTRIBUTES,
    CONTRIB,
    INPUTS,
    IR_VERSIONS,
    LATE,
    LATE_KERNELS,
    NEWEST,
    OLDEST,
    OPSETS,
    TYPES,
    VALUES,
    first_release,
    minor_of,
)

MICROSOFT = "com.microsoft"
# Domains whose operators come with every onnxruntime and are not told apart by release here.
_BUILT_IN = ("", "ai.onnx", "ai.onnx.ml", MICROSOFT, "com.microsoft.nchwc", "com.ms.internal.nhwc")


@dataclass(frozen=True)
class Operator:
    """A node as far as a release may refuse it.

    Attributes:
        inputs: as they are written; one that is left empty counts too.
        attributes: name -> value where that is a whole number, else None.
    """

    domain: str
    op_type: str
    inputs: int
    attributes: dict[str, int | None]


@dataclass(frozen=True)
class Need:
    """Something in a file that no onnxruntime before 1.`since` takes.

    Attributes:
        operator: such as `com.microsoft:MatMulNBits`; "graph" for what is no operator's.
        what: of it, such as `opset 22` or `attribute weight_prepacked`.
        since: minor version of the first release; None: of no release that is known.
        remedy: what would make it run on an older one.
    """

    operator: str
    what: str
    since: int | None
    remedy: str

    @property
    def came(self) -> str:
        """Since when there is such a thing."""
        if self.since is None:
            return f"which no onnxruntime up to 1.{NEWEST} runs on the CPU"
        return f"which came with 1.{self.since}"


@dataclass(frozen=True)
class Support:
    """What a file asks of its runtime.

    Attributes:
        opsets: domain -> version that the graph imports.
        needs: everything newer than 1.16, each named once, the newest first.
    """

    opsets: dict[str, int]
    ir_version: int
    needs: tuple[Need, ...]

    @property
    def oldest(self) -> str | None:
        """The oldest release that takes the file, at least "1.16"; None: none is known to."""
        if any(need.since is None for need in self.needs):
            return None
        return f"1.{max((need.since or 0 for need in self.needs), default=OLDEST)}"

    def refused_by(self, version: str) -> tuple[Need, ...]:
        """What an onnxruntime of `version`, such as "1.20", does not take."""
        minor = minor_of(version)
        return tuple(need for need in self.needs if need.since is None or need.since > minor)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "opsets": self.opsets,
            "ir_version": self.ir_version,
            "oldest": self.oldest,
            "needs": [asdict(need) for need in self.needs],
        }


def demand(support: Support, version: str, place: str) -> None:
    """Refuse a file that onnxruntime `version` would refuse.

    Raises:
        RuntimeTooOld: it needs something newer; every need is named.
    """
    refused = support.refused_by(version)
    if refused:
        raise RuntimeTooOld(
            f"{place}: must run on onnxruntime {version} (runtime_version), got {named(refused)}; "
            f"{refused[0].remedy}"
        )


def named(needs: Iterable[Need]) -> str:
    """Each need, and since when there is such a thing."""
    return "; ".join(f"{need.operator}: {need.what}, {need.came}" for need in needs)


def examine(model: OnnxModel) -> Support:
    """What model.onnx asks of its runtime.

    Raises:
        ModelError: the file cannot be read.
    """
    import onnx

    try:
        proto = onnx.load(str(model.path), load_external_data=False)
    except Exception as error:  # protobuf's decode errors share no public base
        raise ModelError(
            str(model.path), "must be an ONNX file", got=str(error), remedy="export it again."
        ) from error
    opsets = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
    needs = [
        _graph_need("opset", opsets.get("ai.onnx", 1), OPSETS),
        _graph_need("IR version", proto.ir_version, IR_VERSIONS),
        *_type_needs(_types(proto.graph)),
    ]
    bodies = [proto.graph, *proto.functions]
    local = {(function.domain, function.name) for function in proto.functions}
    operators = [
        operator
        for body in bodies
        for operator in _operators(body)
        if (operator.domain, operator.op_type) not in local
    ]
    return Support(opsets, proto.ir_version, _ranked([*needs, *operator_needs(operators, LATE)]))


def examine_ort(path: Path) -> Support:
    """What a file in ORT format asks of its runtime.

    Its operators are those of the release that optimized it, with that release's attributes, so
    it can need a later one than the model.onnx that it was made from.
    """
    from onnxruntime.tools.ort_format_model.ort_model_processor import fbs

    data = bytearray(path.read_bytes())
    model = fbs.InferenceSession.InferenceSession.GetRootAs(data, 0).Model()
    opsets = {}
    for i in range(model.OpsetImportLength()):
        entry = model.OpsetImport(i)
        opsets[entry.Domain().decode() or "ai.onnx"] = int(entry.Version())
    needs = [_graph_need("opset", opsets.get("ai.onnx", 1), OPSETS)]  # no release asks for the IR
    needs += operator_needs(_ort_operators(model.Graph()), LATE | LATE_KERNELS)
    return Support(opsets, int(model.IrVersion()), _ranked(needs))


def operator_needs(operators: Iterable[Operator], late: dict[str, int]) -> list[Need]:
    """What is newer than the oldest release in `operators`; some stand twice.

    Args:
        late: operators of ai.onnx that came later than their opset -> first minor release.
    """
    found = []
    for operator in operators:
        name = f"{operator.domain or 'ai.onnx'}:{operator.op_type}"
        later = "choose another quantization, or name a later runtime_version."
        if operator.domain == MICROSOFT:
            since = CONTRIB.get(operator.op_type)
            found.append(Need(name, "operator", since, later))
        elif operator.domain not in _BUILT_IN:
            ours = "use operators that onnxruntime has; custom ones need a library of their own."
            found.append(Need(name, f"operator of the domain {operator.domain}", None, ours))
            continue
        elif operator.op_type in late:
            found.append(Need(name, "operator", late[operator.op_type], later))
        if operator.domain == MICROSOFT:
            found += _form_needs(name, operator)
    return found


def _form_needs(name: str, operator: Operator) -> Iterator[Need]:
    """What is newer in a node than its operator: attributes, their values, inputs."""
    again = "build it with an exporter of that release's time, or name a later runtime_version."
    known = ATTRIBUTES.get(operator.op_type, {})
    for attribute, value in operator.attributes.items():
        if attribute in known:
            yield Need(name, f"attribute {attribute}", known[attribute], again)
        since = VALUES.get((operator.op_type, attribute), {}).get(value or 0)
        if since is not None:
            yield Need(name, f"{attribute} = {value}", since, again)
    table = INPUTS.get(operator.op_type, {})
    if table and operator.inputs > min(table.values()):
        fitting = [minor for minor, count in table.items() if operator.inputs <= count]
        yield Need(name, f"{operator.inputs} inputs", min(fitting, default=None), again)


def _graph_need(what: str, value: int, table: dict[int, int]) -> Need:
    remedy = f"name a later runtime_version, or give an .onnx file of an earlier {what}."
    return Need("graph", f"{what} {value}", first_release(table, value), remedy)


def _type_needs(types: Iterable[str]) -> Iterator[Need]:
    for name in types:
        if name in TYPES:
            remedy = "choose another quantization, or name a later runtime_version."
            yield Need("graph", f"constants of type {name}", TYPES[name], remedy)


def _ranked(needs: Iterable[Need]) -> tuple[Need, ...]:
    """Each need that not every release meets, once, the newest first."""
    told = [need for need in dict.fromkeys(needs) if need.since is None or need.since > OLDEST]
    return tuple(sorted(told, key=lambda n: (-(n.since or NEWEST + 1), n.operator, n.what)))


def _types(graph: Any) -> set[str]:
    """Element types of a graph's constants, subgraphs included, in lower case."""
    from onnx import TensorProto

    found = {TensorProto.DataType.Name(tensor.data_type).lower() for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == attribute.TENSOR:
                found.add(TensorProto.DataType.Name(attribute.t.data_type).lower())
            for inner in _inner(attribute):
                found |= _types(inner)
    return found


def _operators(body: Any) -> Iterator[Operator]:
    """Nodes of a graph or function and of their subgraphs."""
    for node in body.node:
        attributes = {a.name: int(a.i) if a.type == a.INT else None for a in node.attribute}
        domain = "" if node.domain == "ai.onnx" else node.domain
        yield Operator(domain, node.op_type, len(node.input), attributes)
        for attribute in node.attribute:
            for inner in _inner(attribute):
                yield from _operators(inner)


def _inner(attribute: Any) -> list[Any]:
    if attribute.type == attribute.GRAPH:
        return [attribute.g]
    return list(attribute.graphs) if attribute.type == attribute.GRAPHS else []


def _ort_operators(graph: Any) -> Iterator[Operator]:
    from onnxruntime.tools.ort_format_model.ort_model_processor import fbs

    kinds = fbs.AttributeType.AttributeType
    for i in range(graph.NodesLength()):
        node = graph.Nodes(i)
        attributes: dict[str, int | None] = {}
        for j in range(node.AttributesLength()):
            attribute = node.Attributes(j)
            whole = attribute.Type() == kinds.INT
            attributes[attribute.Name().decode()] = int(attribute.I()) if whole else None
            if attribute.Type() == kinds.GRAPH:
                yield from _ort_operators(attribute.G())
        operator, inputs = node.OpType().decode(), int(node.InputsLength())
        yield Operator(node.Domain().decode(), operator, inputs, attributes)

"""The runtime of a profile: what it must take, what ships for it, and what the report says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.cache import library_versions
from exporter.errors import ProfileError
from exporter.graph.model import OnnxModel
from exporter.models.examples import Feeds
from exporter.stages import Built, Context, read_facts, run_stage, write_facts
from exporter.target import Target


def refuse_runtime(target: Target, reference: OnnxModel) -> None:
    """Refuse a profile whose runtime takes no candidate, before hours are spent on them.

    Opset, IR version and operators of the reference are those of every candidate: what makes one
    adds to them and takes nothing away.

    Raises:
        ProfileError: the runtime that the profile names would refuse the reference.
    """
    from exporter.graph.support import examine, named

    version = target.runtime_version
    if version is None:
        return
    support = examine(reference)
    refused = support.refused_by(version)
    if not refused:
        return
    oldest = support.oldest
    remedy = refused[0].remedy if oldest is None else f'set runtime_version = "{oldest}" or later.'
    raise ProfileError(
        f"target {target.name}",
        f"runtime_version must take this model, which has {named(refused)}",
        got=version,
        remedy=remedy,
    )


def fit_runtime(
    target: Target, model: OnnxModel, feeds: Feeds, *, exact: bool
) -> dict[str, Any] | None:
    """Hold `model` against the profile's runtime; add model.ort where the profile ships one.

    Args:
        feeds: one batch, which model.onnx and model.ort must answer alike.
        exact: the model computes in float32.

    Returns:
        Facts about model.ort, None where the profile asks for none.

    Raises:
        RuntimeTooOld: the runtime that the profile names would refuse a file.
        ExportError: it does not convert, or model.ort answers otherwise than model.onnx.
    """
    from exporter.graph.ort_format import ORT_FILE, PLATFORMS, add_ort_format
    from exporter.graph.support import demand, examine, examine_ort

    version = target.runtime_version
    if version is not None:
        demand(examine(model), version, model.path.name)
    if target.format != "ort":
        return None
    made = add_ort_format(model, PLATFORMS[target.isa], feeds, exact=exact)
    if version is not None:
        demand(examine_ort(model.directory / ORT_FILE), version, ORT_FILE)
    return made.to_json()


def supported(context: Context, built: Built) -> dict[str, Any]:
    """What the files that ship ask of a runtime, and what accelerators of phones could take."""
    target = context.target

    def make(out: Path, scratch: Path) -> None:
        from exporter.graph.mobile import mobile_usability
        from exporter.graph.ort_format import ORT_FILE
        from exporter.graph.support import examine, examine_ort

        ort = built.facts["ort"]
        if ort is not None:
            ort = {**ort, **examine_ort(built.model.directory / ORT_FILE).to_json()}
        mobile = mobile_usability(built.model) if target.isa == "arm64" else None
        facts = {**examine(built.model).to_json(), "ort": ort, "mobile": mobile}
        write_facts(out, "facts.json", facts)

    entry = run_stage(
        context,
        None,
        "support",
        ("graph",),
        {"model": built.key, "isa": target.isa},
        make,
    )
    installed = library_versions()["onnxruntime"]
    return {
        "runtime_version": target.runtime_version,
        "installed": installed,
        **read_facts(entry, "facts.json"),
    }


def support_notes(support: dict[str, Any], model: OnnxModel) -> list[str]:
    """What somebody who downloads the files should know."""
    ort = support["ort"]
    if ort is None:
        return []
    onnx_mib = sum(path.stat().st_size for path in model.weight_files()) / 2**20
    notes = [
        f"model.ort ({ort['size_bytes'] / 2**20:.4g} MiB, for {ort['platform']}) and model.onnx "
        f"({onnx_mib:.4g} MiB) are the same model: an application loads one of them and needs only "
        "that one. Size budgets, quality, latency and devices were judged on model.onnx; model.ort "
        "answered like it on one batch of the workload, on this machine."
    ]
    if model.genai:
        notes.append("onnxruntime-genai loads model.onnx; model.ort is for plain onnxruntime.")
    return notes

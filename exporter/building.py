"""Stages that make graphs: export a module, quantize the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from exporter.checkpoints import loaded
from exporter.compress.ranges import LearnedRange
from exporter.devices.host import host_description
from exporter.errors import QuantizeError
from exporter.graph.model import OnnxModel
from exporter.models.examples import Calibration, Examples, Feeds
from exporter.models.source import read_config
from exporter.models.text import feeds_id
from exporter.quantize import QuantizeOptions, get_scheme
from exporter.recipe import Candidate
from exporter.stages import (
    Built,
    Checkpoint,
    Context,
    Prepared,
    read_facts,
    run_stage,
    write_facts,
)
from exporter.supporting import fit_runtime


def reference_graph(context: Context) -> Built:
    """The original model as float32 ONNX, behind the parity gate."""
    return _export(context, None)


def exported(context: Context, checkpoint: Checkpoint) -> Built:
    """A pruned or fine-tuned checkpoint as float32 ONNX, behind the parity gate."""
    return _export(context, checkpoint)


def quantized(
    context: Context,
    built: Built,
    candidate: Candidate,
    calibration: Prepared,
    feeds: Feeds,
    learned: Sequence[LearnedRange] = (),
) -> Built:
    """`built` in the candidate's format, audited, with its fusions chosen by measurement.

    Args:
        learned: static ranges that quantization-aware training found.
    """
    examples: Examples[Calibration] = calibration.examples
    target = context.target
    scheme = get_scheme(candidate.quantization)

    def make(out: Path, scratch: Path) -> None:
        from exporter.graph.audit import audit
        from exporter.graph.fuse import choose_fusions
        from exporter.graph.saturation import saturations

        proven = None
        result = scheme.quantize(
            built.model,
            out / "model",
            QuantizeOptions(
                calibration=examples,
                reduce_range=target.int8_may_saturate,
                per_channel=candidate.per_channel,
                block_size=candidate.block_size,
                threads=target.threads,
                learned=tuple(learned),
            ),
        )
        choose_fusions(result.model, feeds, threads=target.threads)
        runs = audit(result.model, result.planned)
        if target.int8_may_saturate:
            risks, proven = saturations(result.model)
            if risks:
                raise QuantizeError(
                    f"{result.model.path}: sums can saturate on {target.name}, whose CPUs may lack "
                    f"VNNI: {'; '.join(map(str, risks[:3]))}"
                )
        exact = candidate.quantization == "none"
        ort = fit_runtime(target, result.model, feeds, exact=exact)
        write_facts(
            out,
            "facts.json",
            {
                "planned": result.planned,
                "integer": result.integer,
                "kept_float": list(result.kept_float),
                "op_counts": runs.op_counts,
                "layers": [asdict(layer) for layer in runs.layers],
                "notes": list(result.notes),
                "saturation_proven": proven,
                "ort": ort,
            },
        )

    entry = run_stage(
        context,
        f"quantize to {candidate.quantization}",
        "quantized",
        ("models", "graph", "quantize"),
        {
            "model": built.key,
            "scheme": candidate.quantization,
            "block_size": candidate.block_size,
            "per_channel": candidate.per_channel,
            "reduce_range": target.int8_may_saturate,
            "threads": target.threads,
            "runtime_version": target.runtime_version,
            "ort": target.isa if target.format == "ort" else None,
            "calibration": calibration.key if scheme.CALIBRATED else None,
            "learned": [asdict(told) for told in learned],
            "feeds": feeds_id(feeds),  # fusions are chosen by timing them
            "cpu": host_description()["cpu"],
        },
        make,
    )
    return Built(OnnxModel(entry / "model"), entry.name, read_facts(entry, "facts.json"))


def _export(context: Context, checkpoint: Checkpoint | None) -> Built:
    source = context.source

    def make(out: Path, scratch: Path) -> None:
        from exporter.graph.export import export_model
        from exporter.graph.parity import check_parity
        from exporter.graph.source_onnx import adopt_onnx
        from exporter.models.runner import torch_run

        if source.kind == "onnx" and source.path is not None:
            adopt_onnx(source.path, out / "model")
            write_facts(out, "facts.json", {"parity": None})
            return
        found = loaded(context, checkpoint)
        directory = source.path if checkpoint is None else checkpoint.directory
        config = source.config if checkpoint is None else read_config(checkpoint.directory)
        model = export_model(
            found,
            task=context.task,
            config=config,
            checkpoint=directory,
            out=out / "model",
            progress=context.progress,
        )
        report = check_parity(
            torch_run(found.module),
            model,
            context.task,
            config,
            found.preprocessor,
            example_inputs=found.example_inputs,
            progress=context.progress,
        )
        write_facts(out, "facts.json", {"parity": report.to_json()})

    entry = run_stage(
        context,
        None,
        "exported",
        ("models", "graph"),
        {
            "model": context.source.content_hash,
            "task": context.task.name,
            "checkpoint": checkpoint.key if checkpoint else None,
        },
        make,
    )
    return Built(OnnxModel(entry / "model"), entry.name, read_facts(entry, "facts.json"))

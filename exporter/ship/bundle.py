"""The bundle: everything that ships with a model, in one directory that explains itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.artifact import write_manifest
from exporter.errors import ModelError
from exporter.graph.model import OnnxModel
from exporter.models.scores import Scores
from exporter.models.text import label_names
from exporter.ship.runner import write_runner

EVIDENCE = "evidence"
MEASUREMENTS = "measurements.json"
DEVICES = "devices.json"

# What belongs to a model besides its weights. Weights of the source never ship beside ONNX.
_COMPANIONS = (
    "LICENSE*",
    "NOTICE*",
    "added_tokens.json",
    "chat_template.*",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_TOKENIZER_SOURCES = ("tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model")


def assemble_model(
    directory: Path,
    *,
    model: OnnxModel,
    task: str,
    preprocessor_files: Path | None = None,
    config: Mapping[str, Any] | None = None,
    labels: Sequence[str] | None = None,
    max_length: int | None = None,
    paired: bool = False,
) -> tuple[str, ...]:
    """Write `model/` and `run.py` into `directory`.

    Args:
        directory: exists; becomes the artifact.
        preprocessor_files: directory of the source's tokenizer, processor and configuration.
        config: the configuration of the model that ships (a pruned one differs from its source);
            None takes config.json as it is found.
        labels: class names in order; None takes the configuration's.
        max_length: tokens at which an encoder's input is cut, as it was when it was judged.
        paired: texts come in pairs.

    Returns:
        Notes for the report.

    Raises:
        ModelError: tokenizer or configuration files are malformed.
    """
    out = directory / "model"
    out.mkdir()
    for path in sorted(model.directory.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            shutil.copyfile(path, out / path.name)
    if preprocessor_files is not None:
        _copy_companions(preprocessor_files, out)
    if config is not None:
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False, default=str)
        (out / "config.json").write_text(text + "\n", encoding="utf-8")
    if not task.startswith("image") and not (out / "tokenizer.json").is_file():
        _make_fast_tokenizer(out)
    shipped = _read_config(out)
    return write_runner(
        directory,
        task=task,
        config=shipped,
        labels=list(labels) if labels else label_names(shipped),
        max_length=max_length,
        paired=paired,
    )


def assemble(
    directory: Path,
    *,
    documents: Mapping[str, str],
    manifest: Mapping[str, Any],
    reference_scores: Scores | None = None,
    candidate_scores: Scores | None = None,
    measurements: Mapping[str, Any] | None = None,
    devices: Sequence[Any] = (),
) -> None:
    """Add evidence and reports to what `assemble_model` wrote, then the manifest over it all.

    Args:
        documents: file name -> text, such as `exporter.report.render.render(report)` makes.
        manifest: what the manifest says besides the hashes of the files.
        measurements: every single time, size and peak, JSON-ready.
        devices: what each device of the target told, JSON-ready.
    """
    evidence = directory / EVIDENCE
    evidence.mkdir(exist_ok=True)
    for name, scores in (("reference", reference_scores), ("candidate", candidate_scores)):
        if scores is not None:
            scores.evidence().save(evidence, name)
    for name, facts in ((MEASUREMENTS, measurements), (DEVICES, list(devices) or None)):
        if facts is not None:
            text = json.dumps(facts, indent=1, allow_nan=False)
            (evidence / name).write_text(text + "\n", encoding="utf-8")
    for name, text in documents.items():
        (directory / name).write_text(text, encoding="utf-8")
    write_manifest(directory, dict(manifest))


def _copy_companions(source: Path, out: Path) -> None:
    """Copy what is not there yet: a file that came with the graph knows it better."""
    for pattern in _COMPANIONS:
        for path in sorted(source.glob(pattern)):
            if path.is_file() and not (out / path.name).exists():
                shutil.copyfile(path, out / path.name)


def _make_fast_tokenizer(out: Path) -> None:
    """Write tokenizer.json for a checkpoint that has only its older forms."""
    if not any((out / name).is_file() for name in _TOKENIZER_SOURCES):
        return
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(out), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            "the tokenizer",
            "must load from the files beside the model",
            got=str(error).splitlines()[0],
            remedy="save it again with `save_pretrained`.",
        ) from error
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is not None:  # some tokenizers exist in Python only
        core.save(str(out / "tokenizer.json"))


def _read_config(out: Path) -> dict[str, Any]:
    path = out / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ModelError(
            "config.json", "must be valid JSON", got=str(error), remedy="save the model again."
        ) from error
    return config if isinstance(config, dict) else {}

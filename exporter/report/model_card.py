"""README.md: a model card in the Hugging Face format, so that what ships explains itself.

The head is the metadata of https://github.com/huggingface/hub-docs/blob/main/modelcard.md; whatever
comes from users stands there as a quoted YAML scalar, and in the text below it as escaped Markdown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from exporter.recipe import TASKS
from exporter.report.document import Report
from exporter.report.facts import TOLD_BY_EXPLAIN, Fact, facts
from exporter.report.markdown import escaped, fenced, table
from exporter.report.rows import budget_rows
from exporter.report.wording import ABSENT, VERDICT_MARKS, number, plain

_REPOSITORY = re.compile(r"[A-Za-z0-9_.-]{1,96}(/[A-Za-z0-9_.-]{1,96})?")
_WORDS = re.compile(r"[a-z][a-z-]*")  # YAML scalars that need no quotes
_USAGE = {
    "text-generation": ("tokenizers", '"the beginning of a text"'),
    "text-classification": ("tokenizers", '"some text"'),
    "feature-extraction": ("tokenizers", '"a text" "a text to compare it to"'),
    "image-classification": ("pillow", "picture.png"),
}
# budget -> what the model's own figure is divided by: percents become shares
_QUALITY = {"accuracy_drop_points": 100, "perplexity_ratio": 1}


def to_model_card(report: Report) -> str:
    """The card: metadata, what it is, how to run it, what was shown, how it was made."""
    lines = ["---", *_yaml(metadata(report)), "---", "", f"# {escaped(report.title)}", ""]
    lines += [_what(report), ""]
    mark = VERDICT_MARKS[report.verdict]
    lines += [f"**{mark} {report.verdict}.** {escaped(report.summary)}", ""]
    lines += ["## Run it", "", *_usage(report), ""]
    lines += ["## Evaluation", "", _setting(report), ""]
    lines += table(
        ("Budget", "Original", "This model", "Measured", "Limit", "Verdict"),
        [
            (
                row.title,
                row.reference,
                row.candidate,
                f"{row.measured} ({row.interval})" if row.interval else row.measured,
                row.limit,
                f"{VERDICT_MARKS[row.verdict]} {row.verdict}",
            )
            for row in budget_rows(report)
        ],
    )
    lines += ["", "## What was done", "", *_bullets(_done(report))]
    lines += ["", "## Limits", "", *_bullets(_limits(report))]
    lines += ["", "## Environment", "", *_bullets(_environment(report))]
    if report.command:
        lines += ["", "## Make it again", "", *fenced(report.command)]
    return "\n".join(lines) + "\n"


def metadata(report: Report) -> dict[str, Any]:
    """What the head of the card says; what is not known is left out."""
    model, task = report.model, report.model.get("task")
    scheme = report.recipe.get("quantization")
    head: dict[str, Any] = {
        "library_name": "onnxruntime-genai" if _genai(report) else "onnx",
        "pipeline_tag": task if task in TASKS else None,
    }
    origin = model.get("hub_id") or model.get("name")
    if isinstance(origin, str) and _REPOSITORY.fullmatch(origin):
        head["base_model"] = origin
        if scheme not in (None, "none"):
            head["base_model_relation"] = "quantized"
    head["tags"] = list(
        dict.fromkeys(
            plain(tag)
            for tag in (
                "onnx",
                "onnxruntime",
                model.get("family"),
                None if scheme == "none" else scheme,
                "pruned" if report.pruning else None,
                report.target.get("name"),
            )
            if tag
        )
    )
    results = _results(report)
    if head["pipeline_tag"] and results:
        head["model-index"] = [{"name": plain(report.title), "results": results}]
    return {key: value for key, value in head.items() if value}


def _results(report: Report) -> list[dict[str, Any]]:
    task = str(report.model.get("task"))
    metrics = list(_metrics(report, task))
    if not metrics:
        return []
    name = _data_name(report)
    return [
        {
            "task": {"type": task},
            "dataset": {
                "name": name,
                "type": name,
                "split": "test",
                "args": {
                    "sha256": plain(report.data.get("sha256", "")),
                    "examples": int(report.data.get("test") or 0),
                },
            },
            "metrics": metrics,
        }
    ]


def _metrics(report: Report, task: str) -> Iterator[dict[str, Any]]:
    """The model's own quality, then what each budget limits; what was not measured is left out."""
    own = {"text-generation": "perplexity", "feature-extraction": "recall_at_1"}.get(
        task, "accuracy"
    )
    for judgement in report.judgements:
        divisor = _QUALITY.get(str(judgement.get("metric")))
        value = judgement.get("candidate")
        if divisor and number(value) != ABSENT:
            yield {"type": own, "value": round(float(value) / divisor, 6), "name": own}  # type: ignore[arg-type]
    for judgement in report.judgements:
        value = judgement.get("measured")
        if number(value) != ABSENT:
            yield {
                "type": plain(judgement.get("metric", "")),
                "value": round(float(value), 6),  # type: ignore[arg-type]
                "name": plain(judgement.get("title") or judgement.get("metric", "")),
            }


def _what(report: Report) -> str:
    model, target = report.model, report.target
    name = escaped(model.get("hub_id") or model.get("name") or "a model")
    family = escaped(model.get("family") or "")
    task = escaped(str(model.get("task") or "").replace("-", " "))
    kind = " ".join(word for word in (family, "model for", task) if word) if task else family
    steps = [
        "pruned" if report.pruning else "",
        "fine-tuned" if report.recovery else "",
        "quantized" if report.recipe.get("quantization", "none") != "none" else "",
    ]
    made = [step for step in steps if step] or ["exported"]
    done = " and ".join([", ".join(made[:-1]), made[-1]] if len(made) > 1 else made)
    device = escaped(target.get("name") or "a device")
    described = f" ({escaped(target['description'])})" if target.get("description") else ""
    return f"{name}{f', a {kind},' if kind else ''} {done} to fit {device}{described}."


def _usage(report: Report) -> list[str]:
    task = str(report.model.get("task"))
    library, words = _USAGE.get(task, ("", "inputs.npz"))
    if any(note.startswith("run.py takes arrays") for note in report.notes):
        library, words = "", "inputs.npz"
    runtime = "onnxruntime-genai" if _genai(report) else "onnxruntime"
    packages = " ".join(part for part in (runtime, "numpy", library) if part)
    return ["```sh", f"pip install {packages}", f"python run.py {words}", "```"]


def _setting(report: Report) -> str:
    count = report.data.get("test")
    confidence = report.target.get("evidence")
    confidence = confidence.get("confidence") if isinstance(confidence, Mapping) else None
    sure = "" if confidence is None else f", with {escaped(f'{100 * confidence:g}')} % confidence"
    on = f"{number(count)} test examples" if isinstance(count, int) else "Test examples"
    return (
        f"{on} of {escaped(_data_name(report))} that no step of the export has seen, answered by "
        f"the file that ships and by its float32 original, pair by pair{sure}. `evidence/` holds "
        "every answer and every time, `manifest.json` the hash of every file."
    )


def _done(report: Report) -> Iterator[str]:
    if report.pruning:
        kept = {k: _without(v, "importance", "kept") for k, v in report.pruning.items()}
        yield f"Pruning: {_said(facts(kept, without=TOLD_BY_EXPLAIN))}."
    if report.recovery:
        yield f"Fine-tuning: {_said(facts(report.recovery, without=('history',)))}."
    scheme = report.recipe.get("quantization", "none")
    audit = report.audit or {}
    kernels = (
        f"; {number(audit['integer'])} of {number(audit['planned'])} planned integer kernels run"
        if number(audit.get("planned")) not in (ABSENT, "0")
        else ""
    )
    yield f"Quantization: {escaped(scheme)}{kernels}."
    if report.parity:
        yield (
            "Export: the largest difference of the float32 graph to PyTorch is "
            f"{number(report.parity.get('max_abs_diff'))}."
        )
    tried = [row for row in report.candidates if row.status not in ("skipped", "chosen")]
    if tried:
        others = ", ".join(f"{escaped(row.name)} ({row.status})" for row in tried)
        yield f"Also tried on development data: {others}."


def _limits(report: Report) -> Iterator[str]:
    yield "What was shown holds for data like the test data; other uses need their own evidence."
    yield "License and intended use are those of the original model: see its card."
    yield from map(escaped, report.notes)


def _environment(report: Report) -> Iterator[str]:
    machine = _said(facts(report.environment, without=("load_1min",)))
    if machine:
        yield f"Measured on: {machine}."
    if report.versions:
        names = (f"{escaped(name)} {escaped(version)}" for name, version in report.versions.items())
        yield f"Made with: {', '.join(names)}."
    yield f"Seed: {report.seed}."


def _genai(report: Report) -> bool:
    return report.runtime == "onnxruntime-genai"


def _data_name(report: Report) -> str:
    location = plain(report.data.get("location") or "")
    return plain(PurePath(location).name) or "data"


def _without(value: Any, *names: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {k: v for k, v in value.items() if k not in names}


def _said(found: Sequence[Fact]) -> str:
    return "; ".join(f"{escaped(fact.label)} {escaped(fact.text)}" for fact in found)


def _bullets(lines: Iterator[str]) -> list[str]:
    return [f"- {line}" for line in lines]


def _yaml(value: Mapping[str, Any], indent: str = "") -> list[str]:
    """Block YAML of mappings, lists and scalars; keys are our own."""
    lines = []
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            lines += [f"{indent}{key}:", *_yaml(inner, f"{indent}  ")]
        elif isinstance(inner, list):
            lines.append(f"{indent}{key}:")
            for item in inner:
                if isinstance(item, Mapping):
                    first, *rest = _yaml(item, f"{indent}  ")
                    lines += [f"{indent}- {first.strip()}", *rest]
                else:
                    lines.append(f"{indent}- {_scalar(item)}")
        else:
            lines.append(f"{indent}{key}: {_scalar(inner)}")
    return lines


def _scalar(value: Any) -> str:
    """A number as it is, a plain word, else a double-quoted scalar, which JSON strings are."""
    if isinstance(value, float):
        digits = f"{value:.6f}".rstrip("0")  # never 1e-05, which YAML 1.1 reads as text
        return f"{digits}0" if digits.endswith(".") else digits
    if isinstance(value, int):
        return str(value)
    text = plain(value)
    if _WORDS.fullmatch(text) and text not in ("null", "true", "false", "yes", "no", "on", "off"):
        return text
    # noncharacters, which YAML takes only as escapes
    quoted = json.dumps(text, ensure_ascii=False)
    return re.sub("[\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", quoted)

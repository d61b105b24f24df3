"""Reports as the pipeline makes them: judged by the judge, against the profiles that ship."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from exporter.judge.verdict import judged
from exporter.report.document import CandidateRow, Flip, Observation, Phase, Report, SliceRow
from exporter.report.wording import explain
from exporter.target import Target, load_target

# A grey picture of one pixel.
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)

# measured, low, high, reference, candidate, unit of the two
Figures = tuple[float, float, float, float | None, float | None, str]

CLASSIFIER: dict[str, Figures] = {
    "accuracy_drop_points": (0.12, -0.19, 0.43, 80.31, 80.19, "%"),
    "latency_ratio": (0.344, 0.331, 0.362, 35.31, 12.17, "ms"),
    "disk_size_ratio": (0.2547, 0.2547, 0.2547, 86.61, 22.06, "MiB"),
    "download_size_ratio": (0.238, 0.238, 0.238, 80.12, 19.07, "MiB"),
    "download_size_mib": (19.07, 19.07, 19.07, 80.12, 19.07, "MiB"),
    "peak_memory_mib": (131.4, 131.4, 131.4, 284.0, 131.4, "MiB"),
}


def judgements(
    figures: dict[str, Figures], target: Target, task: str = "text-classification"
) -> tuple[dict[str, Any], ...]:
    """What the judge says of `figures` against the target's budgets."""
    made = []
    for budget in target.budgets.for_task(task):
        if budget.kind.metric not in figures:
            continue
        value, low, high, reference, candidate, unit = figures[budget.kind.metric]
        made.append(
            judged(
                budget,
                measured=value,
                low=low,
                high=high,
                reference=reference,
                candidate=candidate,
                value_unit=unit,
                count=4128,
                reason=f"With 95 % confidence between {low:.4g} and {high:.4g}.",
            ).to_json()
        )
    return tuple(made)


def report_of(figures: dict[str, Figures], **changes: Any) -> Report:
    """A full report over `figures` for the mobile target."""
    target = load_target("mobile")
    task = changes.pop("task", "text-classification")
    found = judgements(figures, target, task)
    verdicts = {j["verdict"] for j in found}
    verdict = "FAIL" if "FAIL" in verdicts else "PASS" if verdicts == {"PASS"} else "INCONCLUSIVE"
    report = Report(
        title="docstring_classifier-mobile",
        verdict=verdict,
        summary=explain(found),
        judgements=found,
        model={
            "name": "docstring_classifier",
            "location": "models/docstring_classifier/model",
            "kind": "checkpoint",
            "family": "bert",
            "task": task,
            "sha256": "9f2c" * 16,
        },
        data={
            "location": "models/docstring_classifier/data",
            "sha256": "07ab" * 16,
            "train": 24310,
            "calibration": 128,
            "development": 2000,
            "test": 4128,
        },
        target=target.model_dump(mode="json", exclude={"recipe", "budgets"}, exclude_none=True),
        recipe=target.recipe.candidates[-1].model_dump(mode="json", exclude_none=True),
        phases=(Phase("answer", 35.31, 38.2, 12.17, 13.4, 0.344, 0.331, 0.362, rounds=57),),
        observations=(Observation("latency p95", "ms", 38.2, 13.4, "this is no mobile device"),),
        candidates=(
            CandidateRow(
                "dynamic-int8", "passed", "", 0.05, "accuracy_drop_points", 0.41, 0.26, 22.5
            ),
            CandidateRow(
                "static-int8",
                "failed",
                "accuracy drop is 2.35 points, allowed ≤ 1 points",
                2.35,
                "accuracy_drop_points",
                0.46,
                0.26,
                22.4,
            ),
            CandidateRow(
                "pruned-dynamic-int8", "chosen", "", 0.2, "accuracy_drop_points", 0.338, 0.2, 17.3
            ),
            CandidateRow("float16", "skipped", "onnxruntime has no float16 kernels on this CPU"),
        ),
        pruning={
            "layers": {
                "before": 6,
                "after": 5,
                "kept": [0, 1, 2, 4, 5],
                "importance": [1.0, 0.62, 0.55, 0.31, 0.48, 0.93],
            },
            "ffn": {"before": 1536, "after": 1024, "importance_kept": 0.8812},
            "criterion": "wanda",
            "parameters": {"before": 22713216, "after": 17_912_064, "nonzero": 17_912_064},
            "divergence": 0.0832,
        },
        recovery={
            "history": [
                {"step": s, "train_loss": None, "development_loss": v}
                for s, v in ((0, 1.9), (100, 1.02), (200, 0.91), (300, 0.88))
            ],
            "best_step": 300,
            "development_loss": 0.88,
        },
        slices=(
            SliceRow("label", "sympy.functions", 311, 1.9, -0.6, 5.1),
            SliceRow("label", "numpy", 402, 0.5, -1.4, 2.8),
            SliceRow("label", "torch.nn", 388, -0.3, -2.2, 1.7),
        ),
        flips=(
            Flip("Return the eigenvalues of a Hermitian matrix.", "numpy", "numpy", "torch", 0.41),
            Flip("Draw the graph.", "networkx", "sympy", "networkx", 0.2, PIXEL),
        ),
        parity={
            "max_abs_diff": 3.4e-6,
            "tolerance": 1e-3,
            "cases": [{"name": "batch 1", "max_abs_diff": 3.4e-6, "allowed": 1e-3}] * 14,
        },
        audit={
            "op_counts": {"MatMulIntegerToFloat": 31, "DynamicQuantizeLinear": 21, "Gelu": 5},
            "planned": 31,
            "integer": 31,
            "kept_float": ["/classifier/MatMul"],
            "layers": [
                {"name": f"/layer.{i}", "op": op, "format": form, "size_bytes": size}
                for i, (op, form, size) in enumerate(
                    [("Gather", "int8", 11_720_000), ("MatMulIntegerToFloat", "int8", 147_456)]
                    + [("MatMulIntegerToFloat", "int8", 590_000), ("MatMul", "float32", 21_504)] * 9
                )
            ],
        },
        environment={
            "isa": "x86-64",
            "cpu": "AMD EPYC 9R14",
            "features": ["avx2", "avx512", "avx512_vnni"],
            "cores": 2,
            "memory_mib": 15876,
            "load_1min": 0.42,
            "os": "Linux 6.8",
            "python": "3.11.11",
        },
        times={
            "reference": [35.0 + (7 * i % 11) / 10 for i in range(56)] + [120.4],
            "candidate": [12.0 + (5 * i % 13) / 10 for i in range(57)],
        },
        versions={"onnxruntime": "1.32.0", "torch": "2.13.0", "transformers": "5.23.0"},
        seed=0,
        command="exporter export models/docstring_classifier/model --target mobile --data models/"
        "docstring_classifier/data --task text-classification --seed 0",
        notes=(
            "Latency and memory were measured on the machine that ran the export, not on a mobile "
            "device: ratios carry over in kind, not in size.",
        ),
    )
    return replace(report, **changes)


def passing() -> Report:
    """Every budget holds."""
    return report_of(CLASSIFIER)


def failing() -> Report:
    """Too slow, and too little evidence about accuracy."""
    return report_of(
        {
            **CLASSIFIER,
            "accuracy_drop_points": (0.7, -0.4, 1.8, 80.3, 79.6, "%"),
            "latency_ratio": (0.81, 0.79, 0.83, 35.31, 28.6, "ms"),
        }
    )


def inconclusive() -> Report:
    """Too little evidence, nothing shown to be wrong."""
    return report_of({**CLASSIFIER, "accuracy_drop_points": (0.7, -0.4, 1.8, 80.3, 79.6, "%")})


def language_model() -> Report:
    """A text generator, with its two phases."""
    return report_of(
        {
            "perplexity_ratio": (1.0142, 1.0121, 1.0163, 12.341, 12.516, ""),
            **{k: v for k, v in CLASSIFIER.items() if k != "accuracy_drop_points"},
        },
        task="text-generation",
        title="code_lm-mobile",
        phases=(
            Phase("answer", 42.1, 47.0, 17.9, 19.4, 0.425, 0.41, 0.44, rounds=60),
            Phase("prefill", 18.2, 19.0, 9.9, 10.2, 0.544, 0.53, 0.56, rounds=60),
            Phase("decode", 0.75, 0.84, 0.25, 0.3, 0.333, 0.32, 0.35, "ms a token", 60),
        ),
        candidates=(
            CandidateRow("int8", "passed", "", 1.0006, "perplexity_ratio", 0.52, 0.28, 2.5),
            CandidateRow("int4", "chosen", "", 1.0142, "perplexity_ratio", 0.425, 0.19, 1.7),
            CandidateRow(
                "pruned-int8",
                "failed",
                "perplexity ratio is 1.31×",
                1.31,
                "perplexity_ratio",
                0.44,
                0.24,
                2.1,
            ),
        ),
        pruning=None,
        recovery=None,
        slices=(),
        flips=(Flip("…def close(self):\n        ", "self", "self", "\n", 3.2),),
    )


HOSTILE = "<script>alert(1)</script>\x1b[31m[bold]|`*_\u202e]]>&\"'\n\x00{{7*7}}"


def hostile() -> Report:
    """Names and texts by someone who wishes us ill."""
    report = passing()
    row = CandidateRow(HOSTILE, "error", HOSTILE)
    return replace(
        report,
        title=HOSTILE,
        summary=HOSTILE,
        model={HOSTILE: HOSTILE, "name": [HOSTILE]},
        candidates=(*report.candidates, row),
        notes=(HOSTILE,),
        command=HOSTILE,
        audit={
            "op_counts": {HOSTILE: 3},
            "kept_float": [HOSTILE],
            "layers": [{"name": HOSTILE, "op": HOSTILE, "format": HOSTILE, "size_bytes": 0}],
        },
        judgements=tuple({**j, "title": HOSTILE, "reason": HOSTILE} for j in report.judgements),
        slices=(SliceRow(HOSTILE, HOSTILE, 20, None),),
        flips=(Flip(HOSTILE, HOSTILE, HOSTILE, HOSTILE, None, HOSTILE),),
        observations=(Observation(HOSTILE, HOSTILE, 1.0, 2.0, HOSTILE),),
        versions={HOSTILE: HOSTILE},
    )

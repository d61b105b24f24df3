"""The gate behind export: the graph must answer what the module answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import ParityError
from exporter.graph.module import tiled
from exporter.graph.session import OnnxRun, open_run, position_ids
from exporter.models.examples import Feeds
from exporter.models.runner import Run, main_output
from exporter.models.text import model_length
from exporter.progress import Progress, Silent

if TYPE_CHECKING:
    from exporter.graph.model import OnnxModel
    from exporter.models.tasks import Task

# Share of the largest output. Float32 sums in another order differ by about 1e-6 of what they
# add up (1e-4 at worst in deep models); a constant rounded to two decimals by 7e-4, a wrong mask,
# position or weight by far more.
TOLERANCE = 3e-4
# Never asked for less than this: outputs near zero are differences of larger numbers.
FLOOR = 1e-5
# Longer inputs cost minutes and find nothing that these do not.
LONGEST = 512
LENGTHS = (1, 7, 16)
DECODED = 6


@dataclass(frozen=True)
class ParityCase:
    """One comparison: the largest difference found, and the one allowed."""

    name: str
    max_abs_diff: float
    allowed: float


@dataclass(frozen=True)
class ParityReport:
    """All comparisons of one export.

    Attributes:
        max_abs_diff: the largest absolute difference of any case.
        tolerance: allowed share of the largest output of the module.
        cases: each comparison.
    """

    max_abs_diff: float
    tolerance: float
    cases: tuple[ParityCase, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, for the cache and the report."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ParityReport:
        """What `to_json` wrote."""
        cases = tuple(ParityCase(**case) for case in data["cases"])
        return cls(data["max_abs_diff"], data["tolerance"], cases)


def check_parity(
    reference: Run,
    model: OnnxModel,
    task: Task,
    config: dict[str, Any],
    preprocessor: Any,
    *,
    example_inputs: Feeds | None = None,
    tolerance: float = TOLERANCE,
    progress: Progress | None = None,
) -> ParityReport:
    """Compare module and graph over batches, lengths, paddings, and decoding with a cache.

    Args:
        reference: the module as a Run.
        example_inputs: inputs of a plain module, repeated to each batch; None makes them by task.
        tolerance: allowed difference as a share of the module's largest output, for float32.

    Raises:
        ParityError: a case differs by more, or yields NaN or inf.
    """
    run = open_run(model)
    cases: list[ParityCase] = []
    with (progress or Silent()).stage("parity") as bar:
        for name, feeds in _cases(task, config, preprocessor, example_inputs):
            expected, got = (
                main_output(reference(feeds), *OUTPUTS),
                main_output(run(feeds), *OUTPUTS),
            )
            cases.append(_compare(name, expected, got, feeds.get("attention_mask"), tolerance))
            bar.advance()
        if task.name == "text-generation" and example_inputs is None:
            for batch in (1, 3):
                name = f"decode with cache, batch {batch}"
                length = _limit(config, preprocessor, _decoded_length(config))
                feeds = _tokens(task, config, preprocessor, batch, length)
                expected, got, mask = _decode(reference, run, feeds)
                cases.append(_compare(name, expected, got, mask, tolerance))
                bar.advance()
    return ParityReport(max(case.max_abs_diff for case in cases), tolerance, tuple(cases))


OUTPUTS = ("logits", "last_hidden_state")


def _cases(
    task: Task, config: dict[str, Any], preprocessor: Any, example: Feeds | None
) -> Iterator[tuple[str, Feeds]]:
    if example is not None or task.name == "image-classification":
        for batch in (1, 3):
            if example is not None:
                yield f"batch {batch}", {n: tiled(a, batch) for n, a in example.items()}
            else:
                yield (
                    f"batch {batch}",
                    task.example_feeds(config, preprocessor, batch=batch, length=1),
                )
        return
    for length in sorted({_limit(config, preprocessor, n) for n in (*LENGTHS, LONGEST)}):
        feeds = _tokens(task, config, preprocessor, 1, length)
        yield f"batch 1, length {length}", feeds
    length = _limit(config, preprocessor, LENGTHS[-1])
    for side in ("right", "left"):
        feeds = _padded(_tokens(task, config, preprocessor, 3, length), side, config)
        if task.name == "text-generation":
            # As generation counts them: from each row's first token, wherever it stands.
            feeds["position_ids"] = position_ids(feeds["attention_mask"], length)
        yield f"batch 3, length {length}, {side} padding", feeds


def _decoded_length(config: dict[str, Any]) -> int:
    """Prompt and decoded tokens: beyond a sliding window where that is affordable."""
    window = config.get("sliding_window")
    return window + 8 if isinstance(window, int) and 8 < window <= LONGEST else 16


def _tokens(task: Task, config: dict[str, Any], preprocessor: Any, batch: int, n: int) -> Feeds:
    return task.example_feeds(config, preprocessor, batch=batch, length=n)


def _limit(config: dict[str, Any], preprocessor: Any, wanted: int) -> int:
    return model_length(preprocessor, config, wanted)


def _padded(feeds: Feeds, side: str, config: dict[str, Any]) -> Feeds:
    """Rows cut to different lengths: the first whole, each next one shorter."""
    length = feeds["input_ids"].shape[1]
    mask = np.ones_like(feeds["attention_mask"])
    for row in range(1, len(mask)):
        gone = min(length - 1, row * max(1, length // 3))
        mask[row, length - gone :] = 0
    mask = mask if side == "right" else np.ascontiguousarray(mask[:, ::-1])
    pad = config.get("pad_token_id")
    ids = np.where(mask == 1, feeds["input_ids"], pad if isinstance(pad, int) else 0)
    return {**feeds, "input_ids": ids, "attention_mask": mask}


def _decode(
    reference: Run, run: OnnxRun, feeds: Feeds
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Logits of a module that sees all tokens at once, and of a graph that reads a prompt and
    then one token at a time; prompts of a batch differ in length, padded in front.

    Returns:
        expected and got (batch, tokens, vocabulary), and the mask of what counts.
    """
    tokens = feeds["input_ids"]
    batch, total = tokens.shape
    prompt = max(1, total - DECODED)
    mask = np.ones_like(tokens)
    for row in range(1, batch):
        mask[row, : min(row, prompt - 1)] = 0
    got, cache = run.with_cache(
        {"input_ids": tokens[:, :prompt], "attention_mask": mask[:, :prompt]}
    )
    logits = [got["logits"]]
    for at in range(prompt, total):
        step = {"input_ids": tokens[:, at : at + 1], "attention_mask": mask[:, : at + 1]}
        got, cache = run.with_cache({**step, **cache})
        logits.append(got["logits"])
    whole = {"input_ids": tokens, "attention_mask": mask, "position_ids": position_ids(mask, total)}
    return main_output(reference(whole), "logits"), np.concatenate(logits, axis=1), mask


def _compare(
    name: str,
    expected: NDArray[Any],
    got: NDArray[Any],
    mask: NDArray[Any] | None,
    tolerance: float,
) -> ParityCase:
    """The largest difference where the mask is one (or everywhere, for outputs not per token)."""
    if expected.shape != got.shape:
        raise ParityError(
            f"{name}: the graph's output must have the module's shape {list(expected.shape)}, "
            f"got {list(got.shape)}; the export fixed a size that varies."
        )
    if mask is not None and expected.ndim == 3 and expected.shape[:2] == mask.shape:
        expected, got = expected[mask == 1], got[mask == 1]
    if not np.isfinite(expected).all():
        raise ParityError(f"{name}: the module itself answers NaN or inf; check its weights.")
    if not np.isfinite(got).all():
        raise ParityError(f"{name}: the graph answers NaN or inf where the module does not.")
    largest = float(np.abs(expected.astype(np.float64) - got).max(initial=0.0))
    allowed = max(FLOOR, tolerance * float(np.abs(expected).max(initial=0.0)))
    if largest > allowed:
        raise ParityError(
            f"{name}: module and graph must agree within {allowed:.1e}, got {largest:.1e}; "
            "the model's code uses something its exporter mistranslates."
        )
    return ParityCase(name, largest, allowed)

"""Choose, by measurement, which graph optimizations of onnxruntime a model ships with."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.graph.audit import audit
from exporter.graph.session import OnnxRun, open_run, write_session
from exporter.progress import Progress, Silent

if TYPE_CHECKING:
    from exporter.graph.model import OnnxModel
    from exporter.models.examples import Feeds

# Optimizers that can cost more than they bring, with the fused operator that shows they acted.
# SkipLayerNormFusion takes the bias that a quantized MatMul would have absorbed.
TRIALS = {"SkipLayerNormFusion": "SkipLayerNormalization"}
# Clearly better: at least this much faster, in at least this share of paired rounds.
WORTH_RATIO, WORTH_SHARE = 0.97, 0.8
_SECONDS = 1.5
_ROUNDS = (11, 101)


@dataclass(frozen=True)
class FusionChoice:
    """What was measured and decided.

    Attributes:
        disabled_optimizers: what the model ships without; empty is onnxruntime's default.
        ratio: median time without `tried` over median time with it; None: nothing to try.
        tried: the optimizer that was tried.
        rounds: paired rounds that were timed.
    """

    disabled_optimizers: tuple[str, ...]
    ratio: float | None
    tried: str | None
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, for the report."""
        return asdict(self)


def choose_fusions(
    model: OnnxModel, feeds: Feeds, *, threads: int = 1, progress: Progress | None = None
) -> FusionChoice:
    """Time `model` with and without each doubtful fusion and write `session.json` if one costs.

    A model whose graph does not show the fusion keeps the default without being timed, and so
    does one for onnxruntime-genai, which makes its own session.

    Args:
        feeds: the workload's inputs.
    """
    write_session(model, ())
    if model.genai:
        return FusionChoice((), None, None, 0)
    counts = audit(model).op_counts
    for optimizer, operator in TRIALS.items():
        if not counts.get(operator):
            continue
        with (progress or Silent()).stage("fusions"):
            ratios = _paired(model, feeds, optimizer, threads)
        chosen = (optimizer,) if clearly_faster(ratios) else ()
        write_session(model, chosen)
        return FusionChoice(chosen, float(np.median(ratios)), optimizer, len(ratios))
    return FusionChoice((), None, None, 0)


def clearly_faster(ratios: NDArray[np.float64]) -> bool:
    """True when paired time ratios show a gain that is not the noise of a shared machine."""
    return bool(np.median(ratios) <= WORTH_RATIO and np.mean(ratios < 1) >= WORTH_SHARE)


def _paired(model: OnnxModel, feeds: Feeds, optimizer: str, threads: int) -> NDArray[np.float64]:
    """Time without `optimizer` over time with it, one value a round; the order alternates."""
    default = open_run(model, threads=threads, disabled_optimizers=())
    without = open_run(model, threads=threads, disabled_optimizers=(optimizer,))
    once = min(_seconds(default, feeds) for _ in range(3))
    _seconds(without, feeds)
    rounds = int(np.clip(_SECONDS / (2 * once), *_ROUNDS))
    ratios = []
    for index in range(rounds):
        if index % 2:
            slow, fast = _seconds(default, feeds), _seconds(without, feeds)
        else:
            fast, slow = _seconds(without, feeds), _seconds(default, feeds)
        ratios.append(fast / slow)
    return np.asarray(ratios, np.float64)


def _seconds(run: OnnxRun, feeds: Feeds) -> float:
    start = time.perf_counter()
    run(feeds)
    return time.perf_counter() - start

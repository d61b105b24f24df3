"""Cuts for `benchmarks/pruning.py`: made, distilled, scored once each, and remembered."""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from exporter.budget import Budgets
from exporter.compress.batching import few_feeds, spread
from exporter.compress.compensate import compensate
from exporter.compress.finetune import fine_tune
from exporter.compress.flops import multiply_accumulates, workload
from exporter.compress.hidden import score_hidden
from exporter.compress.importance import Importance, score_structure
from exporter.compress.plan import plan_removal
from exporter.compress.removal import Removal, remove
from exporter.compress.structure import structure_of
from exporter.display import progress_for
from exporter.judge.quality import judge_quality
from exporter.models.examples import Examples, Split
from exporter.models.load import load_checkpoint, load_preprocessor
from exporter.models.runner import torch_run
from exporter.models.scores import Scores
from exporter.models.source import resolve_source
from exporter.models.splits import make_splits
from exporter.models.tasks import get_task
from exporter.recipe import CRITERIA as KNOWN
from exporter.recipe import FineTune, Pruning
from exporter.target import Evidence

PARTS = {
    "ffn": ("ffn",),
    "heads": ("heads",),
    "ffn+heads": ("ffn", "heads"),
    "hidden": ("hidden",),
    "layers": ("layers",),
}
CRITERIA = ("magnitude", "wanda", "taylor", "mask-gradient", "fisher", "obs", "block-influence")
HIDDEN = "carried"  # channels are ranked in one way, whatever the criterion of the rest
STEP = 32  # widths go in such steps
LENGTH = 128  # tokens whose FLOPs are counted
CONDITIONS = ("windows", "test_windows", "examples", "seed")  # that every row hangs on


@dataclass(frozen=True)
class Row:
    """One cut on one split.

    Attributes:
        level, share: steps of its part that go, and the share that this is.
        flops: share of the multiply-accumulates of 128 tokens that stays.
        kept: what stays, hashed: two criteria may keep the same.
        ratio, high: perplexity over the original's, and its one-sided 95 % bound.
    """

    part: str
    criterion: str
    level: int
    share: float
    flops: float
    kept: str
    distilled: bool
    split: str
    ratio: float
    high: float


class Bench:
    """A model, its data, and every cut that was measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.progress = progress_for(Console(stderr=True))
        source = resolve_source(str(options.model), task=None)
        self.source, self.task = source, get_task(source.task)
        if source.task != "text-generation" or source.path is None:
            raise SystemExit(f"{options.model}: must be a language model's checkpoint")
        splits = make_splits(str(options.data), self.task)
        preprocessor = load_preprocessor(source)

        def prepared(split: Split[Any]) -> Examples[Any]:
            return self.task.prepare(split, preprocessor, source.config, max_length=512)

        train = prepared(splits.train)
        self.train = few_feeds(train, max(options.steps * options.batch_size, 1))
        self.scored_on = few_feeds(train, options.examples)
        self.examples = {
            "development": _windows(prepared(splits.development), options.windows),
            "test": _windows(prepared(splits.test), options.test_windows),
        }
        self.original = load_checkpoint(source.path, source.task)
        structure = structure_of(self.original)
        if structure is None:
            raise SystemExit(f"{options.model}: its family is not supported")
        self.structure = structure
        held = {name: getattr(options, name) for name in CONDITIONS} | {
            "model": source.content_hash,
            "data": [self.examples[name].ids for name in sorted(self.examples)],
        }
        name = hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:12]
        self.folder: Path = options.cache / name
        self.folder.mkdir(parents=True, exist_ok=True)
        taught = f"{options.steps}x{options.batch_size}-{options.learning_rate:g}"
        self.files = {
            False: self.folder / "one-shot.jsonl",
            True: self.folder / f"distilled-{taught}.jsonl",
        }
        self.importance = cache(self._importance)
        self.channels = cache(self._channels)
        self.reference = cache(self._reference)
        self.flops = cache(self._flops)

    def criteria(self, part: str) -> list[str]:
        """Those asked for that can rank a part."""
        if part == "hidden":
            return [HIDDEN]
        kind = {"layers": "layer", "heads": "group"}.get(part, "ffn")
        return [name for name in self.options.criteria if kind in KNOWN[name]]

    def rows(self, split: str = "development") -> list[Row]:
        """What was measured by this run and those before it."""
        files = [file for file in self.files.values() if file.exists()]
        lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
        found = [Row(**json.loads(line)) for line in lines if line.endswith("}")]
        unique = {(r.part, r.criterion, r.level, r.distilled): r for r in found if r.split == split}
        return list(unique.values())

    def levels(self, part: str) -> int:
        """How many steps a part has."""
        s = self.structure
        counts = {"layers": s.layers, "heads": s.groups, "hidden": s.hidden // STEP}
        return max(counts.get(part, s.ffn // STEP), 1)

    def largest(self, part: str, criterion: str, limit: float) -> None:
        """Bisect for the largest cut whose bound is within the limit."""
        low, high = 0, min(int(self.levels(part) * self.options.largest), self.levels(part) - 1) + 1
        while high - low > 1:
            level = (low + high) // 2
            within = self.measure(part, criterion, level).high <= limit
            low, high = (level, high) if within else (low, level)

    def equal(self) -> list[tuple[str, int]]:
        """Part and level of the cuts that leave the FLOPs of one layer less, two, and so on."""
        found = []
        for depth in range(1, min(self.options.depths, self.structure.layers - 1) + 1):
            goal = self.flops("layers", depth)
            for part in self.options.parts:
                levels = range(1, self.levels(part))
                near = min(levels, key=lambda n: abs(self.flops(part, n) - goal), default=0)
                if near and abs(self.flops(part, near) - goal) < 0.03:
                    found.append((part, near))
        return found

    def best(self, part: str, level: int) -> str:
        """The criterion with the lowest one-shot ratio at the level nearest to this one."""
        found = [r for r in self.rows() if r.part == part and not r.distilled]
        return min(found, key=lambda row: (abs(row.level - level), row.ratio)).criterion

    def measure(self, part: str, criterion: str, level: int, *, distilled: bool = False) -> Row:
        """The row of a cut on development data."""
        for row in self.rows():
            if (row.part, row.criterion, row.level, row.distilled) == (
                part,
                criterion,
                level,
                distilled,
            ):
                return row
        removal = self._removal(part, criterion, level)
        kept = hashlib.sha256(repr(replace(removal, skipped=())).encode()).hexdigest()[:12]
        row = Row(
            part,
            criterion,
            level,
            level / self.levels(part),
            self.flops(part, level),
            kept,
            distilled,
            "development",
            0.0,
            0.0,
        )
        same = [r for r in self.rows() if (r.kept, r.distilled) == (kept, distilled)]
        if same:
            return self._remembered(replace(row, ratio=same[0].ratio, high=same[0].high))
        module = self._cut(removal)
        if distilled:
            module = self._taught(module, self._student(kept))
        return self._remembered(self._judged(row, module))

    def final(self, row: Row) -> Row:
        """The row of a chosen cut on test data."""
        for known in self.rows("test"):
            if (known.kept, known.distilled) == (row.kept, row.distilled):
                return known
        module = (
            load_checkpoint(self._student(row.kept), self.source.task)
            if row.distilled
            else self._cut(self._removal(row.part, row.criterion, row.level))
        )
        return self._remembered(self._judged(replace(row, split="test"), module))

    def _remembered(self, row: Row) -> Row:
        with self.files[row.distilled].open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        self.progress.note(
            f"{row.part} {row.share:.3g} {row.criterion}{', distilled' * row.distilled}: "
            f"{row.ratio:.4f} (at most {row.high:.4f}) on {row.split} data"
        )
        return row

    def _student(self, kept: str) -> Path:
        """Where a distilled student is kept."""
        return self.folder / f"{self.files[True].stem}-{kept}"

    def _importance(self, criterion: str) -> Importance:
        return score_structure(
            self.original,
            self.structure,
            self.scored_on,
            criterion=criterion,
            task=self.task,
            progress=self.progress,
        )

    def _channels(self) -> Any:
        return score_hidden(self.original, self.structure, self.scored_on, progress=self.progress)

    def _removal(self, part: str, criterion: str, level: int) -> Removal:
        share = level / self.levels(part)
        pruning = Pruning.model_validate(dict.fromkeys(PARTS[part], share))
        ranked = "magnitude" if criterion == HIDDEN else criterion
        channels = self.channels() if pruning.hidden else None
        return plan_removal(self.structure, self.importance(ranked), pruning, channels)

    def _flops(self, part: str, level: int) -> float:
        """Share of multiply-accumulates that stays; it hangs on counts alone."""
        criterion = HIDDEN if part == "hidden" else "magnitude"
        smaller = remove(self.original, self._removal(part, criterion, level))
        feeds = workload(self.original, batch=1, length=LENGTH)
        after, before = (multiply_accumulates(m, feeds) for m in (smaller, self.original))
        return after / before

    def _cut(self, removal: Removal) -> nn.Module:
        changed, _ = compensate(
            self.original, self.structure, removal, self.scored_on, "least-squares"
        )
        return remove(changed, removal)

    def _taught(self, student: nn.Module, out: Path) -> nn.Module:
        """The student after distillation alone, kept for the test data."""
        options = FineTune(
            steps=self.options.steps,
            batch_size=self.options.batch_size,
            learning_rate=self.options.learning_rate,
            distill_weight=1.0,
            evaluate_every=self.options.steps,
        )
        with tempfile.TemporaryDirectory() as scratch:
            student = fine_tune(
                student,
                self.original,
                self.task,
                self.train,
                self.examples["development"],
                options,
                seed=self.options.seed,
                scratch=Path(scratch),
                progress=self.progress,
            ).module
        saved: Any = student
        saved.save_pretrained(out)
        return student

    def _judged(self, row: Row, module: nn.Module) -> Row:
        found = self.task.score(torch_run(module.eval()), self.examples[row.split], batch_size=4)
        budgets = Budgets(perplexity_ratio=1.01)
        [judgement] = judge_quality(self.reference(row.split), found, budgets, Evidence())
        assert judgement.measured is not None
        assert judgement.high is not None
        return replace(row, ratio=judgement.measured, high=judgement.high)

    def _reference(self, split: str) -> Scores:
        return self.task.score(torch_run(self.original), self.examples[split], batch_size=4)


def _windows(examples: Examples[Any], count: int) -> Examples[Any]:
    """At most so many windows of each document, evenly apart: every document has a say."""
    chosen: list[int] = []
    for document in range(len(examples)):
        mine = [i for i, owner in enumerate(examples.owner) if owner == document]
        chosen += [mine[i] for i in spread(len(mine), count)]
    return replace(
        examples,
        feeds=tuple(examples.feeds[i] for i in chosen),
        owner=tuple(examples.owner[i] for i in chosen),
    )

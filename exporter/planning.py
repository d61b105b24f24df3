"""What an export would do, and why, without doing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from exporter.attempts import DEVELOPMENT_EXAMPLES
from exporter.budget import Budget
from exporter.devices.registry import kind_of
from exporter.errors import DataError
from exporter.judge.statistics import (
    MINIMUM_CLUSTERS,
    required_examples,
    required_for_share,
    zero_flips_needed,
)
from exporter.models.source import resolve_source
from exporter.models.splits import make_splits
from exporter.models.tasks import get_task
from exporter.pipeline import resolve_target
from exporter.recipe import Candidate, Pruning, Recipe
from exporter.report.wording import limit
from exporter.target import DeviceEntry, Target

# Shares of answers that usually flip: mild int8, and a bold cut that was trained to recover.
TYPICAL_DISCORDANCE = (0.01, 0.05)


@dataclass(frozen=True)
class Plan:
    """What would be done.

    Attributes:
        model, data, target: facts.
        evidence: a sentence a quality budget: can the test split decide it?
        steps: candidate -> what would be done to it, in order.
        left_out: candidate -> why it would not be tried.
        devices: of the profile -> whether this machine has what they need.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    target: dict[str, Any]
    evidence: tuple[str, ...]
    steps: dict[str, tuple[str, ...]]
    left_out: dict[str, str]
    devices: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def to_text(self) -> str:
        """For a terminal."""
        lines = []
        for title, facts in (("model", self.model), ("data", self.data), ("target", self.target)):
            lines += [title, *(f"  {name:<12} {value}" for name, value in facts.items()), ""]
        lines += ["can the evidence decide?", *(f"  {text}" for text in self.evidence), ""]
        if self.devices:
            told = [f"  {name}: {state}" for name, state in self.devices.items()]
            lines += ["devices, on development data", *told, ""]
        lines.append(
            "candidates, from mild to bold; the cheapest that passes on development data (by"
        )
        lines.append(
            "the target CPU's instructions where a device counts them, else by time here) is"
        )
        lines.append("judged once on test data (the least far from it, if none passes)")
        for name, steps in self.steps.items():
            lines += [f"  {name}", *(f"    - {step}" for step in steps)]
        for name, why in self.left_out.items():
            lines.append(f"  {name}: not tried, {why}")
        return "\n".join(lines)


def plan(
    model: str | Path,
    *,
    data: str | Path | None,
    target: str | Path | Target = "mobile",
    task: str | None = None,
    recipe: Recipe | Path | str | dict[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    slices: Sequence[str] = (),
    seed: int | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Plan:
    """Read model, data and profile as `export` would, and say what it would do.

    Raises:
        InputError: something given is wrong, just as `export` would say.
    """
    profile = resolve_target(target, recipe, seed)
    if data is None:
        raise DataError("--data", "is missing", remedy="give the task's examples; see --help.")
    source = resolve_source(
        str(model), task=task, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
    )
    splits = make_splits(
        str(data),
        get_task(source.task),
        columns=columns,
        label_names=source.config.get("label2id"),
        seed=profile.recipe.seed,
        calibration_examples=profile.recipe.calibration_examples,
        slices=slices,
    )
    budgets = profile.budgets.for_task(source.task)
    left_out_rows = splits.left_out_text().replace(" left out:", ":", 1)
    steps, left_out = {}, {}
    for candidate in profile.recipe.candidates:
        why = _not_tried(candidate, source.task, source.kind)
        if why:
            left_out[candidate.name] = why
        else:
            steps[candidate.name] = _steps(candidate, profile)
    return Plan(
        model={
            "location": source.location,
            "kind": source.kind,
            "family": source.config.get("model_type", "-"),
            "task": source.task,
        },
        data={
            "location": str(data),
            "train": f"{len(splits.train):,} examples: importance and fine-tuning",
            "calibration": f"{len(splits.calibration):,} examples: ranges of static quantization",
            "development": f"{len(splits.development):,} examples: every choice",
            "test": f"{len(splits.test):,} examples: read once, for the final judgement",
            **({"left out": left_out_rows} if left_out_rows else {}),
        },
        target={
            "name": profile.name,
            "device": profile.description,
            "isa": " ".join([profile.isa, *profile.features]),
            "threads": profile.threads,
            "budgets": "; ".join(
                f"{b.kind.title} {limit(b.kind.metric, b.limit)}" for b in budgets
            ),
        },
        evidence=(
            *(
                text
                for b in budgets
                if (text := _decidable(b, len(splits.test), profile.evidence.confidence))
            ),
            *_not_choosable(budgets, len(splits.development), profile.evidence.confidence),
        ),
        steps=steps,
        left_out=left_out,
        devices={entry.name: _device(entry) for entry in profile.devices},
    )


def _device(entry: DeviceEntry) -> str:
    kind, option = kind_of(entry.name)
    lacks = "; ".join(f"{m.what} is missing: {m.remedy}" for m in kind.missing(option))
    if not lacks:
        return "asked when it is reached" if kind.pattern else "usable"
    return f"{lacks} ({'required' if entry.required else 'its budgets would not be judged'})"


def _not_tried(candidate: Candidate, task: str, kind: str) -> str:
    if task not in candidate.tasks:
        return f"it is meant for {', '.join(candidate.tasks)}"
    if (candidate.pruning or candidate.fine_tune) and kind != "checkpoint":
        return "pruning and fine-tuning need a Hugging Face checkpoint"
    return ""


def _steps(candidate: Candidate, target: Target) -> tuple[str, ...]:
    steps = []
    if candidate.pruning is not None:
        shares = [
            f"{100 * getattr(candidate.pruning, part):g} % of the {words}"
            for part, words in (
                ("layers", "layers"),
                ("heads", "attention heads"),
                ("ffn", "feed-forward units"),
                ("hidden", "hidden width"),
                ("channels", "channels of convolutions"),
            )
            if getattr(candidate.pruning, part)
        ]
        if shares:
            steps.append(
                f"remove {', '.join(shares)}, least important first by "
                f"{candidate.pruning.criterion} (physically: that is what saves time)"
            )
            if candidate.pruning.compensate != "none":
                steps.append(f"let what stays take over ({candidate.pruning.compensate})")
        if candidate.pruning.zero_share:
            steps.append(_zeros(candidate.pruning))
    if candidate.fine_tune is not None:
        tune = candidate.fine_tune
        steps.append(f"distil from the original for up to {tune.steps} steps")
        if tune.quantize_aware:
            steps.append(f"round as {candidate.quantization} will, all the while")
        if tune.train_reference:
            steps.append("train the reference as long, and judge against the better one")
    steps.append("export to ONNX, and compare it with PyTorch")
    if candidate.quantization != "none":
        narrow = " to weights whose sums cannot saturate" if target.int8_may_saturate else ""
        steps.append(f"quantize: {candidate.quantization}{narrow}, and count the kernels that run")
    return tuple(steps)


def _zeros(pruning: Pruning) -> str:
    where = f" in the pattern {pruning.sparsity_pattern}" if pruning.sparsity_pattern else ""
    if pruning.sparsity_scope == "global":
        where = ", wherever they matter least"
    when = ", more and more of them while fine-tuning" * (pruning.sparsity_schedule == "cubic")
    return (
        f"set {100 * pruning.zero_share:g} % of the single weights to zero{where}{when} "
        "(for the download only: zeros are not speed)"
    )


def _not_choosable(budgets: Sequence[Budget], examples: int, confidence: float) -> tuple[str, ...]:
    """What is to be said when no candidate can pass on `examples` development examples."""
    judged = min(examples, DEVELOPMENT_EXAMPLES)
    short = [
        f"{b.kind.title} {limit(b.kind.metric, b.limit)} (it takes {least:,})"
        for b in budgets
        if (least := _fewest(b, confidence)) is not None and judged < least
    ]
    if not short:
        return ()
    return (
        f"choosing: on {judged:,} development examples no candidate can show "
        f"{' and '.join(short)}; the one least far from it is judged on test data",
    )


def _fewest(budget: Budget, confidence: float) -> int | None:
    """Examples without which a quality budget cannot pass; None for budgets that need none."""
    metric = budget.kind.metric
    if metric == "accuracy_drop_points":
        return zero_flips_needed(budget.limit / 100, confidence)
    if metric == "flip_ratio":
        return required_for_share(0.0, budget.limit, confidence)
    if metric in ("perplexity_ratio", "embedding_cosine", "kl_mean_nats"):
        return MINIMUM_CLUSTERS
    return None


def _decidable(budget: Budget, examples: int, confidence: float) -> str:
    """Whether `examples` can decide a quality budget; "" for budgets that need none."""
    metric = budget.kind.metric
    if metric == "accuracy_drop_points":
        margin = budget.limit / 100
        least = zero_flips_needed(margin, confidence)
        needs = [
            f"{needed:,} if {100 * share:g} % of the answers flip"
            for share in TYPICAL_DISCORDANCE
            if (needed := required_examples(share, margin, confidence)) is not None
        ]
        answer = (
            f"no: {examples:,} test examples cannot show it even if no answer flips"
            if examples < least
            else f"{examples:,} test examples"
        )
        return (
            f"{budget.kind.title} {limit(metric, budget.limit)}: {answer}; "
            f"it takes {least:,} if none flips, {', '.join(needs)}"
        )
    if metric == "flip_ratio":
        fewest = required_for_share(0.0, budget.limit, confidence)
        if fewest is None:
            return ""
        answer = "no: too few" if examples < fewest else f"{examples:,} test examples"
        return (
            f"{budget.kind.title} ≤ {budget.limit:g}: {answer}; it takes {fewest:,} if none differs"
        )
    if metric in ("perplexity_ratio", "embedding_cosine", "kl_mean_nats"):
        enough = "enough to try" if examples >= MINIMUM_CLUSTERS else "too few, it stays open"
        return (
            f"{budget.kind.title}: {examples:,} test examples, {enough} "
            f"(at least {MINIMUM_CLUSTERS}; how many more depends on their spread)"
        )
    return ""

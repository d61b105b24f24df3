"""Other seeds: made again from recovery and calibration, and said when they judge otherwise."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import exporter
from exporter.artifact import load_artifact
from exporter.judge.verdict import overall
from exporter.report.wording import explain, repeated
from exporter.stability import Outcome, Repeat, Spread, Stability, _spread, final_judgement
from tests import chain, tiny
from tests.report import samples


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("seeds")
    return {
        "model": tiny.checkpoint("bert", root / "bert"),
        "data": chain.text_data(root / "rows.jsonl"),
        "cache": root / "cache",
        "root": root,
    }


# Divergence tells models apart that answer alike.
BUDGETS = {"accuracy_drop_points": 60, "disk_size_mib": 9, "kl_mean_nats": 0.5}


def run(
    m: dict[str, Path], name: str, candidate: dict[str, object], **options: object
) -> exporter.Result:
    recipe = {"calibration_examples": 16, "candidates": [{"name": "only", **candidate}]}
    return exporter.export(
        m["model"],
        data=m["data"],
        target=chain.quick_target(recipe=recipe, **BUDGETS),
        out=m["root"] / name,
        cache=m["cache"],
        **options,  # type: ignore[arg-type]
    )


TRAINED = {"pruning": {"ffn": 0.5, "examples": 8}, "fine_tune": chain.FINE_TUNE}


def test_other_seeds_train_and_calibrate_anew_and_the_first_ships(
    material: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[tuple[str, str, Outcome]] = []

    def watched(context: Any, reference: Any, made: Any, test: Any, feeds: Any) -> Outcome:
        outcome = final_judgement(context, reference, made, test, feeds)
        judged.append((made.built.key, test.examples.role.name, outcome))
        return outcome

    one = run(material, "one", {"quantization": "static-int8", **TRAINED})
    assert one.report.stability is None
    assert "--seeds" not in one.report.command
    made = len(list((material["cache"] / "fine-tuned").glob("*/checkpoint")))
    monkeypatch.setattr("exporter.stability.final_judgement", watched)
    three = run(material, "three", {"quantization": "static-int8", **TRAINED}, seeds=3)
    again = len(list((material["cache"] / "fine-tuned").glob("*/checkpoint")))
    assert again - made == 2  # two students more, and no other reference
    assert "--seed 0 --seeds 3 --out" in three.report.command
    stability = three.report.stability
    assert stability is not None
    assert stability["varies"]
    assert [r["seed"] for r in stability["repeats"]] == [0, 1, 2]
    first = stability["repeats"][0]["measured"]
    assert first == {j.metric: j.measured for j in three.judgements}
    # each other seed made a model of its own, and what it came to is that model's
    shipped = load_artifact(three.directory).manifest["stages"]["candidate"]
    assert len({shipped, *(key for key, _, _ in judged)}) == 3
    assert {role for _, role, _ in judged} == {"test"}
    for row, (_, _, outcome) in zip(stability["repeats"][1:], judged, strict=True):
        assert row["measured"] == {j.metric: j.measured for j in outcome.judgements}
        assert row["verdict"] == overall(outcome.judgements)
        assert list(row["lost"]) == [j.metric for j in outcome.judgements if j.verdict != "PASS"]
    values = [r["measured"]["kl_mean_nats"] for r in stability["repeats"]]
    assert len(set(values)) == 3
    assert stability["spread"]["kl_mean_nats"] == {
        "low": min(values),
        "high": max(values),
        "mean": pytest.approx(statistics.mean(values)),
        "deviation": pytest.approx(statistics.stdev(values)),
    }
    # what ships is what one seed alone ships
    hashes = [
        {
            n: e
            for n, e in load_artifact(r.directory).manifest["files"].items()
            if n.startswith("model/")
        }
        for r in (one, three)
    ]
    assert hashes[0] == hashes[1]
    assert "Other seeds" in (three.directory / "report.html").read_text(encoding="utf-8")


def test_calibration_alone_is_repeated_too(material: dict[str, Path]) -> None:
    result = run(material, "calibrated", {"quantization": "static-int8"}, seeds=2)
    assert result.report.stability is not None
    assert result.report.stability["varies"]


def test_a_candidate_that_no_seed_touches_says_so(material: dict[str, Path]) -> None:
    result = run(material, "dynamic", {"quantization": "dynamic-int8"}, seeds=2)
    assert result.report.stability is not None
    assert not result.report.stability["varies"]
    assert any("Nothing in this candidate depends on the seed" in n for n in result.report.notes)


def test_the_spread_is_over_every_seed_that_was_measured() -> None:
    repeats = [
        Repeat(0, "PASS", {"x": 1.0, "y": None, "z": 5.0}, ()),
        Repeat(1, "FAIL", {"x": 2.0, "y": None}, ("x",)),
        Repeat(2, "ERROR", {}, (), "it broke"),
        Repeat(3, "PASS", {"x": 6.0, "y": None}, ()),
    ]
    assert _spread(repeats) == {
        "x": Spread(1.0, 6.0, 3.0, pytest.approx(7**0.5)),  # (2² + 1² + 3²) / 2
        "z": Spread(5.0, 5.0, 5.0, 0.0),
    }


def stability(*verdicts: str) -> dict[str, Any]:
    repeats = tuple(
        Repeat(i, v, {"x": 1.0}, () if v == "PASS" else ("kl_mean_nats",))
        for i, v in enumerate(verdicts)
    )
    return asdict(Stability(repeats, {}, True))


def test_a_pass_that_others_do_not_repeat_says_so() -> None:
    told = repeated(stability("PASS", "PASS", "FAIL", "INCONCLUSIVE"))
    assert told.startswith("2 of 3 other seeds did not repeat the PASS of seed 0")
    assert "seed 2: FAIL (kl_mean_nats)" in told
    assert repeated(stability("PASS", "PASS")) == "All 2 seeds came to PASS."
    judged = samples.passing().judgements
    assert explain(judged, stability("PASS", "FAIL")).endswith("The artifact holds seed 0.")
    assert explain(judged, stability("PASS", "PASS")) == explain(judged)

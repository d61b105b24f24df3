"""Other seeds: made again from recovery and calibration, and said when they judge otherwise."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import exporter
from exporter.artifact import load_artifact
from exporter.report.wording import explain, repeated
from exporter.stability import Repeat, Stability
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


def run(
    m: dict[str, Path], name: str, candidate: dict[str, object], **options: object
) -> exporter.Result:
    recipe = {"calibration_examples": 16, "candidates": [{"name": "only", **candidate}]}
    return exporter.export(
        m["model"],
        data=m["data"],
        target=chain.quick_target(recipe=recipe, accuracy_drop_points=60, disk_size_mib=9),
        out=m["root"] / name,
        cache=m["cache"],
        **options,  # type: ignore[arg-type]
    )


TRAINED = {"pruning": {"ffn": 0.5, "examples": 8}, "fine_tune": chain.FINE_TUNE}


def test_other_seeds_train_and_calibrate_anew_and_the_first_ships(
    material: dict[str, Path],
) -> None:
    one = run(material, "one", {"quantization": "static-int8", **TRAINED})
    assert one.report.stability is None
    assert "--seeds" not in one.report.command
    made = len(list((material["cache"] / "fine-tuned").glob("*/checkpoint")))
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
    spread = stability["spread"]["accuracy_drop_points"]
    values = [r["measured"]["accuracy_drop_points"] for r in stability["repeats"]]
    assert (spread["low"], spread["high"]) == (min(values), max(values))
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

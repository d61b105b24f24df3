"""One run of an artifact on a device: what may be given to it, and how near its answers are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import exporter
from exporter import running
from exporter.devices.device import Job, Ran
from exporter.devices.local import Local
from exporter.errors import DataError
from exporter.report.devices import run_to_text
from exporter.running import run
from tests import chain, tiny

ELSEWHERE = "ssh://elsewhere"


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a language model."""
    root = tmp_path_factory.mktemp("writer")
    one = chain.RECIPE | {"candidates": chain.RECIPE["candidates"][1:2]}
    result = exporter.export(
        tiny.checkpoint("llama", root / "llama"),
        data=chain.text_data(root / "rows.jsonl", labels=False),
        target=chain.quick_target(recipe=one),
        out=root / "out",
        cache=root / "cache",
    )
    return result.directory


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Ran], Ran]], None]:
    """Let ELSEWHERE be a device whose answers are this machine's, changed by what is given."""

    def install(change: Callable[[Ran], Ran], **traits: Any) -> None:
        class Elsewhere(Local):
            def __init__(self) -> None:
                super().__init__()
                self.traits = replace(self.traits, name=ELSEWHERE, **traits)

            def run(self, job: Job, **options: Any) -> Ran:
                return change(super().run(job, **options))

        monkeypatch.setattr(running, "open_device", lambda name, settings: Elsewhere())

    return install


def test_a_language_models_tokens_are_held_against_those_here(
    writer: Path, elsewhere: Callable[..., None]
) -> None:
    elsewhere(lambda ran: ran)
    same = run(writer, on=ELSEWHERE, repeats=1)
    assert (same.differs, same.same) == (0, 1)

    def other_third(ran: Ran) -> Ran:
        tokens, logits = np.array(ran.tokens), np.array(ran.logits)
        tokens[:, 2] += 1
        logits[1] += 0.5  # seen: both had read the same
        logits[3:] = 100.0  # not seen: what was read differs
        return replace(ran, tokens=tokens, logits=logits)

    elsewhere(other_third)
    other = run(writer, on=ELSEWHERE, repeats=1)
    steps = other.ran.tokens.shape[1]
    assert other.same == pytest.approx(1 - 1 / steps)
    assert 0.1 < (other.differs or 0) < 0.6
    assert other.to_json()["same_as_here"] == other.same
    assert f"{100 * (1 - 1 / steps):.1f} % of the tokens are those written here" in run_to_text(
        other.to_json()
    )


def test_this_machine_is_not_asked_twice(writer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []
    honest = Local.run

    def counted(self: Local, job: Job, **options: Any) -> Ran:
        jobs.append(job)
        return honest(self, job, **options)

    monkeypatch.setattr(Local, "run", counted)
    found = run(writer, repeats=1)
    assert len(jobs) == 1
    assert (found.differs, found.same) == (None, None)
    assert "here" not in run_to_text(found.to_json())


def test_instructions_are_told_of_the_whole_workload_and_by_class(
    writer: Path, elsewhere: Callable[..., None]
) -> None:
    counted = {"all": 3e6, "dot_product": 1e6}
    elsewhere(
        lambda ran: replace(
            ran, classes={"prefill": counted, "decode": dict.fromkeys(counted, 0.0)}
        )
    )
    text = run_to_text(run(writer, on=ELSEWHERE, repeats=1).to_json())
    assert "  workload    3.00 M instructions\n  of these    1.00 M dot product\n" in text


def test_operators_that_may_saturate_there_are_named(
    signed: dict[str, Any], elsewhere: Callable[..., None]
) -> None:
    """Made for a phone, so its weights take the whole range."""
    said = {}
    for features in (("avx2",), ("avx2", "avx512_vnni")):
        elsewhere(lambda ran: ran, isa="x86-64", features=features)
        found = run(signed["result"].directory, on=ELSEWHERE, repeats=1)
        said[features] = found.ran.facts.get("saturation"), run_to_text(found.to_json())
    risks, text = said["avx2",]
    assert risks
    assert all(f"  saturates   perhaps {risk}" in text for risk in risks)
    assert "of 32,767" in text
    assert said["avx2", "avx512_vnni"][0] is None
    assert "saturates" not in said["avx2", "avx512_vnni"][1]


def test_a_classifiers_answers_are_held_against_those_here(
    signed: dict[str, Any], tmp_path: Path, elsewhere: Callable[..., None]
) -> None:
    rows = tmp_path / "in.jsonl"
    rows.write_text('{"text": "the red cat sleeps"}\n{"text": "seven"}\n')
    elsewhere(lambda ran: ran)
    same = run(signed["result"].directory, on=ELSEWHERE, input_file=rows)
    assert same.differs == pytest.approx(0, abs=1e-6)
    assert same.same == 1

    def first_turned(ran: Ran) -> Ran:
        first, second = ran.outputs
        return replace(ran, outputs=({n: -a for n, a in first.items()}, second))

    elsewhere(first_turned)
    other = run(signed["result"].directory, on=ELSEWHERE, input_file=rows)
    assert (other.differs or 0) > 1e-3
    assert other.same == 0.5
    assert "50.0 % of the answers are those here" in run_to_text(other.to_json())


def test_one_run_answers_texts_rows_and_feeds(signed: dict[str, Any], tmp_path: Path) -> None:
    out = signed["result"].directory
    text = tmp_path / "in.txt"
    text.write_text("the red cat sleeps")
    one = run(out, input_file=text)
    (answer,) = one.answers
    assert sum(answer["labels"].values()) == pytest.approx(1, abs=0.01)
    assert (one.differs, one.same) == (None, None)  # it was here
    assert one.cost.answer is not None
    rows = tmp_path / "in.jsonl"
    rows.write_text('{"text": "the red cat sleeps"}\n{"text": "seven"}\n')
    assert run(out, input_file=rows).answers[0] == answer
    assert len(run(out, input_file=rows).answers) == 2
    feeds = tmp_path / "in.npz"
    np.savez(feeds, input_ids=np.array([[3, 4, 5]]))
    assert run(out, input_file=feeds).answers
    assert json.dumps(run(out).to_json())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("gone.txt", None),
        ("empty.txt", b"  \n"),
        ("bad.json", b"{"),
        ("list.json", b'["text"]'),
        ("number.json", b'{"text": 5}'),
        ("binary.txt", b"\xff\xfe\x00"),
        ("bad.npz", b"PK\x03\x04 nothing"),
        ("picture.png", b"\x89PNG"),
    ],
)
def test_what_is_no_input_gets_one_message(
    signed: dict[str, Any], tmp_path: Path, name: str, content: bytes | None
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        run(signed["result"].directory, input_file=path)
    assert refused.value.remedy


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"input_ids": np.array([["a", "b"]])},
        {"input_ids": np.int64(3)},
        {"input_ids": np.zeros((0, 4), np.int64)},
        {"input_ids": np.ones((2, 4), np.int64), "attention_mask": np.ones((1, 4), np.int64)},
    ],
    ids=["nothing", "words", "scalar", "no row", "two batches"],
)
def test_feeds_that_are_no_batch_get_one_message(
    signed: dict[str, Any], tmp_path: Path, arrays: dict[str, Any]
) -> None:
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(DataError, match="same batch"):
        run(signed["result"].directory, input_file=tmp_path / "in.npz")


@pytest.mark.parametrize("token", [-1, 10**8])
def test_tokens_that_the_model_does_not_know_are_refused(
    writer: Path, tmp_path: Path, token: int
) -> None:
    feeds = tmp_path / "in.npz"
    np.savez(feeds, input_ids=np.array([[3, token, 5]]))
    with pytest.raises(DataError, match=rf"must be tokens of the model, 0 to \d+, got {token};"):
        run(writer, input_file=feeds)

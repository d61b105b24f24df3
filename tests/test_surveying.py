"""A profile's devices in the whole chain: asked, judged, shipped as evidence, judged again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import exporter
from exporter import surveying
from exporter.attempts import Attempt
from exporter.choose import best
from exporter.devices.device import Traits
from exporter.errors import (
    ArtifactError,
    DataError,
    DeviceCpu,
    DeviceDisk,
    DeviceError,
    DeviceKilled,
    DeviceLost,
    DeviceMissing,
    DeviceRefused,
    DeviceTimeout,
    InputError,
)
from exporter.judge.reading import Cost, Reading
from exporter.recipe import Candidate
from exporter.running import run
from exporter.target import Target
from tests import chain, tiny
from tests.signed import edit, fix_hashes, write_keys

BUDGETS = {
    "accuracy_drop_points": 60.0,
    "device_difference": 1e-4,
    "device_flip_ratio": 0.05,
    "device_cosine_drop": 0.01,
}
MISSING = "arm64:cortex-a53"  # conftest hides what was installed


def _target(*devices: dict[str, Any], **budgets: Any) -> Target:
    one = chain.RECIPE | {"candidates": chain.RECIPE["candidates"][:1]}
    changed = chain.quick_target(recipe=one).model_dump()
    changed["devices"] = devices
    changed["budgets"] = BUDGETS | budgets
    return Target.model_validate(changed)


LOCAL = {"name": "local", "examples": 6}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("devices")
    inputs: dict[str, Any] = {
        "model": tiny.checkpoint("bert", root / "bert"),
        "data": chain.text_data(root / "rows.jsonl"),
        "cache": root / "cache",
    }
    target = _target(LOCAL, {"name": MISSING})
    keys = write_keys(root / "keys")
    result = exporter.export(**inputs, target=target, out=root / "out", key=keys["private"])
    return {"inputs": inputs, "result": result, "root": root, "target": target}


def test_devices_are_asked_judged_and_told(made: dict[str, Any]) -> None:
    result = made["result"]
    metrics = {j.metric: j.verdict for j in result.judgements}
    assert {m: v for m, v in metrics.items() if m.startswith("device")} == {
        "device_failures": "PASS",
        "device_difference": "PASS",
        "device_flip_ratio": "PASS",
        "device_cosine_drop": "PASS",
    }
    local, gone = result.report.devices
    assert (local["status"], local["examples"], local["unit"]) == ("ran", 6, "ms")
    assert local["here"] == local["there"]
    assert local["times_ms"]["candidate"]["run"]
    assert gone["status"] == "missing"
    assert "exporter devices install arm64" in gone["reason"]
    assert any(note.startswith(f"{MISSING} was not asked") for note in result.report.notes)
    for name in ("report.html", "report.md"):
        assert "cortex-a53" in (result.directory / name).read_text(encoding="utf-8")
    assert exporter.verify(result.directory).sound


def test_a_required_device_that_is_missing_never_passes(made: dict[str, Any]) -> None:
    target = _target(LOCAL, {"name": MISSING, "required": True})
    result = exporter.export(**made["inputs"], target=target, out=made["root"] / "required")
    assert result.verdict == "INCONCLUSIVE"
    assert result.exit_code == 3
    (open_,) = [j for j in result.judgements if j.verdict != "PASS"]
    assert open_.metric == "device_failures"
    assert f"{MISSING} is required" in open_.reason
    assert exporter.verify(result.directory).sound


def test_devices_can_be_left_out_but_not_those_that_are_required(made: dict[str, Any]) -> None:
    out = made["root"] / "left-out"
    result = exporter.export(**made["inputs"], target=made["target"], out=out, devices=False)
    assert result.verdict == "PASS"
    assert {d["status"] for d in result.report.devices} == {"missing"}
    assert not [j for j in result.judgements if j.metric.startswith("device")]
    needed = _target({**LOCAL, "required": True})
    result = exporter.export(**made["inputs"], target=needed, out=out, devices=False)
    assert result.verdict == "INCONCLUSIVE"


def test_an_unknown_device_is_refused_before_any_work(made: dict[str, Any]) -> None:
    target = _target({"name": "arm64:cortex-a35"})
    with pytest.raises(InputError, match="did you mean 'arm64:cortex-a53'"):
        exporter.export("nowhere", data=None, target=target)


def _first(change: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda directory: edit(
        directory / "evidence/devices.json", lambda readings: change(readings[0])
    )


@pytest.mark.parametrize(
    ("forge", "named"),
    [
        (_first(lambda r: r["there"].update(flips=6)), "report.json"),
        (_first(lambda r: r.update(status="failed", reason="no")), "manifest.json"),
        (_first(lambda r: r.update(float_difference=0.5)), "manifest.json"),
        (_first(lambda r: r.update(device="wasm")), "evidence/devices.json"),
        (_first(lambda r: r.update(required=True)), "evidence/devices.json"),
        (_first(lambda r: r.update(there=5)), "devices: 0.there"),
        (lambda d: (d / "evidence/devices.json").unlink(), "evidence/devices.json"),
        (
            lambda d: edit(d / "report.json", lambda r: r["devices"][0].update(runtime="9.9")),
            "report.json.devices",
        ),
    ],
    ids=[
        "flips",
        "status",
        "difference",
        "another device",
        "required",
        "malformed",
        "gone",
        "report",
    ],
)
def test_forged_readings_are_named(
    made: dict[str, Any], tmp_path: Path, forge: Callable[[Path], None], named: str
) -> None:
    import shutil

    copy = Path(shutil.copytree(made["result"].directory, tmp_path / "copy"))
    forge(copy)
    fix_hashes(copy)
    found = exporter.verify(copy)
    assert not found.sound
    assert named in found.to_text()


def test_check_asks_what_it_is_told_to(made: dict[str, Any]) -> None:
    out, cache = made["result"].directory, made["inputs"]["cache"]
    plain = exporter.check(out, cache=cache)
    shipped = made["result"].report.devices
    assert list(plain.report.devices) == list(shipped)  # judged again as they were told
    asked = exporter.check(out, on=["profile"], cache=cache)
    assert [d["status"] for d in asked.report.devices] == ["ran", "missing"]
    assert asked.report.devices[0]["times_ms"] != shipped[0]["times_ms"]
    with pytest.raises(DeviceMissing, match="exporter devices install arm64"):
        exporter.check(out, on=[MISSING], cache=cache)
    with pytest.raises(InputError, match="unknown device 'lokal'"):
        exporter.check(out, on=["lokal"], cache=cache)
    with pytest.raises(ArtifactError, match="not in this machine's cache"):
        exporter.check(out, on=["local"], cache=made["root"] / "empty")


def test_nobody_is_connected_to_unasked(
    made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An artifact of a stranger may list any address."""
    from exporter.devices import ssh

    def connected(*_: object) -> None:
        raise AssertionError("connected")

    monkeypatch.setattr(ssh.SshKind, "open", connected)
    target = _target(LOCAL, {"name": "ssh://stranger@203.0.113.1"})
    out, cache = made["result"].directory, made["inputs"]["cache"]
    exporter.check(out, target=target, cache=cache)
    exporter.check(out, target=target, on=["local"], cache=cache)
    exporter.verify(out)
    with pytest.raises(AssertionError, match="connected"):
        exporter.check(out, target=target, on=["profile"], cache=cache)


def test_what_the_profile_requires_holds_for_what_was_told_before(made: dict[str, Any]) -> None:
    """Evidence may be of another profile, or forged; whoever checks says what is required."""
    target = _target(LOCAL, {"name": MISSING, "required": True})
    out, cache = made["result"].directory, made["inputs"]["cache"]
    found = exporter.check(out, target=target, cache=cache)
    assert found.verdict == "INCONCLUSIVE"
    assert found.report.devices[1]["required"]


def test_an_artifact_does_not_say_what_runs_on_a_device(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python` of a stranger's manifest would be a command on the user's own device."""
    import shutil

    from exporter.devices import local

    opened: list[Any] = []
    honest = local.LocalKind.open

    def spying(self: Any, option: str, settings: Any) -> Any:
        opened.append(settings.get("python"))
        return honest(self, option, settings)

    monkeypatch.setattr(local.LocalKind, "open", spying)
    copy = Path(shutil.copytree(made["result"].directory, tmp_path / "copy"))
    evil = "touch here; python3"
    edit(copy / "manifest.json", lambda m: m["target"]["devices"][0].update(python=evil))
    fix_hashes(copy)
    cache = made["inputs"]["cache"]
    run(copy, on="local")
    exporter.check(copy, on=["profile"], cache=cache)
    assert set(opened) == {None}
    run(copy, on="local", python="mine")
    exporter.check(copy, on=["local"], python="mine", cache=cache)
    assert "mine" in opened


def test_a_profile_without_devices_cannot_be_asked(made: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="needs a profile with devices"):
        exporter.check(
            made["result"].directory,
            target=_target(),
            on=["profile"],
            cache=made["inputs"]["cache"],
        )


def test_a_model_that_answers_otherwise_on_a_device_fails(
    made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device is believed, not the host: one whose answers are turned around is noticed."""
    from exporter.devices.local import Local

    honest = Local.run

    def contrary(self: Local, job: Any, **options: Any) -> Any:
        ran = honest(self, job, **options)
        turned = tuple({n: -a for n, a in o.items()} for o in ran.outputs)
        return replace(ran, outputs=turned)

    monkeypatch.setattr(Local, "run", contrary)
    found = exporter.check(made["result"].directory, on=["local"], cache=made["inputs"]["cache"])
    lost = {j.metric for j in found.judgements if j.verdict == "FAIL"}
    assert lost >= {"device_difference", "device_flip_ratio", "device_cosine_drop"}
    assert found.exit_code == 1


def test_scores_there_are_of_what_was_answered_there(
    made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of three classes in turn for each example: just one is right."""
    from exporter.devices.local import Local

    honest = Local.run
    target = _target({**LOCAL, "examples": 5})
    accuracies = []
    for turn in range(3):

        def turned(self: Local, job: Any, turn: int = turn, **options: Any) -> Any:
            ran = honest(self, job, **options)
            outputs = tuple({n: np.roll(a, turn, -1) for n, a in o.items()} for o in ran.outputs)
            return replace(ran, outputs=outputs)

        monkeypatch.setattr(Local, "run", turned)
        inputs = {"target": target, "on": ["local"], "cache": made["inputs"]["cache"]}
        (told,) = exporter.check(made["result"].directory, **inputs).report.devices
        accuracies.append(told["there"]["scores"]["accuracy"])
    assert sum(accuracies) == pytest.approx(1)


@pytest.mark.parametrize(
    ("error", "status", "verdict"),
    [
        (DeviceRefused, "failed", "FAIL"),
        (DeviceKilled, "failed", "FAIL"),
        (DeviceCpu, "failed", "FAIL"),
        (DeviceTimeout, "unfinished", "PASS"),
        (DeviceLost, "unfinished", "PASS"),
        (DeviceDisk, "unfinished", "PASS"),
    ],
)
def test_a_model_that_does_not_run_is_told_apart_from_a_device_that_does_not(
    made: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    error: type[DeviceError],
    status: str,
    verdict: str,
) -> None:
    from exporter.devices.local import Local

    def fail(self: Local, job: Any, **options: Any) -> Any:
        raise error("local: so it ended")

    monkeypatch.setattr(Local, "run", fail)
    found = exporter.check(made["result"].directory, on=["local"], cache=made["inputs"]["cache"])
    assert found.report.devices[0]["status"] == status
    assert found.report.devices[0]["reason"] == "local: so it ended"
    assert found.verdict == verdict


def _attempt(name: str, host: float, instructions: float | None) -> Attempt:
    reading = Reading(
        "arm64:cortex-a53",
        False,
        "ran",
        unit="instructions",
        reference=Cost(answer=100.0),
        candidate=Cost(answer=None if instructions is None else 100 * instructions),
    )
    candidate = Candidate(name=name, tasks=("text-generation",), quantization="none")
    attempt = Attempt(candidate, "judged", readings=() if instructions is None else (reading,))
    object.__setattr__(attempt, "measurements", _Measured(host))
    return attempt


class _Measured:
    def __init__(self, ratio: float) -> None:
        self.latency_ratio = Cost()
        object.__setattr__(self, "latency_ratio", type("R", (), {"value": ratio}))


def test_the_targets_instructions_choose_not_this_machines_time() -> None:
    """int8 is fast here and gains little on a Cortex-A53, where less work is what pays."""
    int8, pruned = _attempt("int8", 0.3, 0.84), _attempt("pruned", 0.5, 0.55)
    assert best([int8, pruned]) is pruned
    int8, pruned = _attempt("int8", 0.3, None), _attempt("pruned", 0.5, None)
    assert best([int8, pruned]) is int8


def test_what_costs_most_on_one_cpu_of_the_profile_is_not_cheap() -> None:
    """Of several CPUs the one on which a candidate gains least ranks it."""
    there = _attempt("int8", 0.3, 0.4)
    worse = replace(there.readings[0], device="arm64:cortex-a76", candidate=Cost(answer=90.0))
    uneven = replace(there, readings=(there.readings[0], worse))
    even = _attempt("pruned", 0.5, 0.7)
    assert best([uneven, even]) is even


def test_a_cpu_of_another_class_has_no_say_in_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting takes minutes, and what is counted there says nothing of the target's kernels."""
    target = _target({"name": "arm64:cortex-a53"}, {"name": "arm64:cortex-a76"})
    assert target.features == ("neon", "fp16", "dotprod")
    cpus = {"arm64:cortex-a53": ("neon",), "arm64:cortex-a76": (*target.features, "i8mm")}
    devices = [
        surveying.Asked(
            entry,
            SimpleNamespace(  # type: ignore[arg-type]
                traits=Traits(entry.name, "", "arm64", cpus[entry.name], cost="instructions")
            ),
        )
        for entry in target.devices
    ]
    monkeypatch.setattr(surveying, "asked", lambda _: devices)
    monkeypatch.setattr(surveying, "_fitted", lambda *_: target.workload)
    monkeypatch.setattr(surveying, "cached", lambda *_: None)
    monkeypatch.setattr(surveying, "costs_only", lambda device, *_: device.traits.name)
    context: Any = SimpleNamespace(target=target, devices=True)
    model: Any = None
    assert surveying.counted(context, model, model, {}) == ("arm64:cortex-a76",)


def test_one_run_answers_texts_rows_and_feeds(made: dict[str, Any], tmp_path: Path) -> None:
    out = made["result"].directory
    text = tmp_path / "in.txt"
    text.write_text("the red cat sleeps")
    one = run(out, input_file=text)
    (answer,) = one.answers
    assert sum(answer["labels"].values()) == pytest.approx(1, abs=0.01)
    assert one.differs == 0
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
    made: dict[str, Any], tmp_path: Path, name: str, content: bytes | None
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        run(made["result"].directory, input_file=path)
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
    made: dict[str, Any], tmp_path: Path, arrays: dict[str, Any]
) -> None:
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(DataError, match="same batch"):
        run(made["result"].directory, input_file=tmp_path / "in.npz")

"""A profile's devices in the whole chain: asked, judged, shipped as evidence, judged again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import exporter
from exporter import surveying
from exporter.devices.device import Traits
from exporter.errors import (
    ArtifactError,
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
from exporter.progress import Silent
from exporter.running import run
from exporter.target import Target
from tests import chain
from tests.signed import edit, fix_hashes, signed_classifier

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
    target = _target(LOCAL, {"name": MISSING})
    return signed_classifier(tmp_path_factory.mktemp("devices"), target)


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
    (said,) = [note for note in result.report.notes if note.startswith(f"{MISSING} was not asked")]
    assert said.count(MISSING) == 1
    for name in ("report.html", "report.md"):
        assert "cortex-a53" in (result.directory / name).read_text(encoding="utf-8")
    assert exporter.verify(result.directory).sound


class Notes(Silent):
    """Progress that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def test_an_export_says_which_devices_were_not_asked(made: dict[str, Any]) -> None:
    out, notes = made["root"] / "noted", Notes()
    exporter.export(**made["inputs"], out=out, devices=False, progress=notes)
    told = "\n".join(notes.told)
    assert "local was not asked: devices were left out (--no-devices)" in told
    assert f"{MISSING} was not asked" in told
    assert "device_difference" in told
    assert "not judged, since no device told" in told


def test_a_required_device_that_is_missing_never_passes(made: dict[str, Any]) -> None:
    target = _target(LOCAL, {"name": MISSING, "required": True})
    result = exporter.export(**made["inputs"] | {"target": target}, out=made["root"] / "required")
    assert result.verdict == "INCONCLUSIVE"
    assert result.exit_code == 3
    (open_,) = [j for j in result.judgements if j.verdict != "PASS"]
    assert open_.metric == "device_failures"
    assert f"{MISSING} is required" in open_.reason
    assert exporter.verify(result.directory).sound


def test_devices_can_be_left_out_but_not_those_that_are_required(made: dict[str, Any]) -> None:
    out = made["root"] / "left-out"
    result = exporter.export(**made["inputs"], out=out, devices=False)
    assert result.verdict == "PASS"
    assert {d["status"] for d in result.report.devices} == {"missing"}
    assert not [j for j in result.judgements if j.metric.startswith("device")]
    needed = _target({**LOCAL, "required": True})
    result = exporter.export(**made["inputs"] | {"target": needed}, out=out, devices=False)
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


@pytest.mark.parametrize(
    ("on", "said"),
    [
        ("lokal", "lokal: unknown device 'lokal'; did you mean 'local'"),
        ("arm64:cortex-a54", "did you mean 'arm64:cortex-a53'"),
        ("ssh://pi@", "must be ssh://user@host"),
        (MISSING, f"{MISSING}: cannot be used here"),
    ],
)
def test_a_device_that_cannot_be_asked_is_refused_before_any_work(
    made: dict[str, Any], monkeypatch: pytest.MonkeyPatch, on: str, said: str
) -> None:
    def scored(*_: object, **__: object) -> None:
        raise AssertionError("scored first")

    monkeypatch.setattr("exporter.recheck.answers", scored)
    with pytest.raises(InputError) as caught:
        exporter.check(made["result"].directory, on=["local", on], cache=made["inputs"]["cache"])
    assert said in str(caught.value)
    assert "--on" not in str(caught.value)


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

"""Verify: every file is held against the manifest, and no input makes it crash."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import exporter
from exporter.cli import main
from exporter.errors import ArtifactError
from tests.signed import edit, fix_hashes, places, read


def test_a_fresh_artifact_is_sound_and_its_verdicts_are_derived(signed: dict[str, Any]) -> None:
    result = signed["result"]
    found = exporter.verify(result.directory, key=signed["keys"]["public"])
    assert found.sound, found.to_text()
    assert found.verdict == result.verdict
    assert found.judgements == result.judgements
    assert {j.metric for j in found.judgements} == {
        "accuracy_drop_points", "disk_size_ratio", "latency_ratio",
    }  # fmt: skip
    assert found.signature.startswith("valid")
    unchecked = exporter.verify(result.directory)
    assert unchecked.sound
    assert unchecked.signature == "signed, not checked: give --key"


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _link_out(directory: Path) -> None:
    (directory / "model").rename(directory.parent / "elsewhere")
    (directory / "model").symlink_to(directory.parent / "elsewhere")


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte": (lambda d: _flip(d / "model/model.onnx"), "model/model.onnx: differs"),
    "run.py": (lambda d: (d / "run.py").write_text("evil()"), "run.py: differs"),
    "a missing file": (lambda d: (d / "model/config.json").unlink(), "config.json: is named"),
    "one more file": (
        lambda d: (d / "model/.hidden").write_text(""),
        "model/.hidden: is not named",
    ),
    "a second manifest": (
        lambda d: (d / "model/manifest.json").write_text("{}"),
        "model/manifest.json: is not named",
    ),
    "a second signature": (
        lambda d: (d / "model/manifest.sig").write_text("x"),
        "model/manifest.sig: is not named",
    ),
    "a pipe": (lambda d: os.mkfifo(d / "pipe"), "pipe: is not named"),
    "a payload": (
        lambda d: np.savez(d / "evidence/candidate.npz", embedding=np.zeros(3)),
        "evidence/candidate.npz: is no evidence",
    ),
    "a dangling link": (lambda d: (d / "link").symlink_to("nowhere"), "link: is not named"),
    "a linked directory": (_link_out, "model/model.onnx: must lie inside"),
    "evidence gone": (lambda d: shutil.rmtree(d / "evidence"), "evidence/reference.jsonl"),
    "everything gone": (
        lambda d: [p.unlink() for p in d.rglob("*") if p.is_file() and p.name != "manifest.json"],
        "report.json",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_every_file_is_held_against_the_manifest(case: str, altered: Path) -> None:
    damage, words = FILES[case]
    damage(altered)
    assert words in places(altered)


UNREADABLE = ("is named in the manifest and missing", "cannot be read")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "model/../../secret", "x\0y", "y" * 5000, "\ud800"]
)
def test_names_that_leave_the_artifact_are_refused_unread(name: str, altered: Path) -> None:
    from exporter.cache import sha256_file

    secret = altered.parent / "secret"
    secret.write_text("secret")
    entry = {"sha256": sha256_file(secret), "size_bytes": 6}
    content = read(altered / "manifest.json")
    content["files"][name] = entry
    (altered / "manifest.json").write_text(json.dumps(content))
    found = exporter.verify(altered)
    assert found.mismatches[0].place == name
    assert found.mismatches[0].rule in ("must lie inside the artifact", *UNREADABLE)
    found.to_text().encode()
    json.dumps(found.to_json(), ensure_ascii=False).encode()


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [path, *(leaf for k, v in value.items() for leaf in _leaves(v, (*path, k)))]
    if isinstance(value, list):
        return [path, *_leaves(value[0], (*path, 0))] if value else [path]
    return [path]


@pytest.mark.parametrize("junk", [None, -1, "x", [], {}, 1e308, 10**400, True])
@pytest.mark.parametrize("name", ["report.json", "evidence/measurements.json", "manifest.json"])
def test_whatever_stands_in_a_file_is_a_finding_and_no_crash(
    name: str, junk: Any, altered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.claims.render", lambda report: {})
    path = altered / name
    original = read(path)
    for leaf in _leaves(original):
        if not leaf or leaf[0] in ("files", "schema", "recipe") or "recipe" in leaf:
            continue
        changed = json.loads(json.dumps(original))
        place = changed
        for part in leaf[:-1]:
            place = place[part]
        place[leaf[-1]] = junk
        path.write_text(json.dumps(changed))
        found = exporter.verify(altered)
        json.dumps(found.to_json(), allow_nan=False)
        if name != "manifest.json":  # its facts are its own; its signature covers them
            assert not found.sound


def test_what_is_no_artifact_is_no_mismatch(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="must be an artifact"):
        exporter.verify(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="must be valid JSON"):
        exporter.verify(tmp_path)


def _command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["exporter", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_command(
    altered: Path,
    signed: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    public = signed["keys"]["public"]
    code, out, _ = _command(capsys, monkeypatch, "verify", altered, "--key", public)
    assert code == 0
    for words in ("sound", "none missing", "derived again", "accuracy drop", "signature  valid"):
        assert words in out
    code, out, err = _command(capsys, monkeypatch, "verify", altered.parent, "--json")
    assert (code, json.loads(out)["exit_code"]) == (2, 2)
    assert err.count("error: ") == 1
    code, _, err = _command(capsys, monkeypatch, "verify", altered, "--key", altered / "none.pem")
    assert code == 2
    assert "cannot be read, got No such file" in err
    edit(altered / "report.json", lambda r: r["judgements"][0].update(measured=-5.0))
    fix_hashes(altered)
    code, out, err = _command(capsys, monkeypatch, "verify", altered, "--key", public, "--json")
    found = json.loads(out)
    assert code == 1
    assert not found["sound"]
    edited = [m for m in found["mismatches"] if m["place"].endswith("points.measured")]
    assert edited[0]["claimed"] == -5.0
    assert edited[0]["derived"] == signed["result"].judgements[0].measured
    code, out, err = _command(capsys, monkeypatch, "verify", altered)
    assert code == 1
    assert "NOT what it claims to be" in out
    assert "claimed -5.0, derived" in out
    assert "Traceback" not in out + err


def test_verifying_needs_neither_a_runtime_nor_a_training_framework(signed: dict[str, Any]) -> None:
    blocked = (
        "torch", "transformers", "onnxruntime", "onnxruntime_genai", "onnx", "tokenizers",
        "optimum", "datasets", "accelerate", "cyclonedx",
    )  # fmt: skip
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "def offline(event, _):\n"
        "    if event.startswith('socket.'): sys.exit('the network was asked')\n"
        "sys.addaudithook(offline)\n"
        "from exporter.cli import main\n"
        "main()\n"
    )
    arguments = ["verify", signed["result"].directory, "--key", signed["keys"]["public"]]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "sound" in done.stdout

"""Evidence that someone else made: whatever stands in it is refused, soon and in little memory."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import exporter
from exporter.artifact import MODEL, write_manifest
from exporter.errors import ArtifactError, InputError
from exporter.models.scores import EVIDENCE_ARRAYS, Scores, load_scores
from tests.signed import edit, read

IDS = tuple("abcd")
TOKENS = np.asarray([3.0, 0.0, 2.0, 4.0])
SCORES = Scores(
    "text-generation",
    IDS,
    {"kl": np.ones(4), "tokens": TOKENS, "nll": np.ones(4), "correct": np.ones(4)},
    {"token_kl": np.arange(9, dtype=np.float16)},
)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def _npz(path: Path, header: dict[str, Any], body: bytes = b"", name: str = "token_kl") -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, header)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", buffer.getvalue() + body)


def _header(shape: tuple[int, ...], descr: str = "<f8") -> dict[str, Any]:
    return {"descr": descr, "fortran_order": False, "shape": shape}


def _corrupt(path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez_compressed(path, token_kl=rng.normal(size=9).astype(np.float16))
    content = bytearray(path.read_bytes())
    for i in range(70, 140):
        content[i] ^= 0x5A
    path.write_bytes(content)


def _encrypted(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.rfind(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def _twice(path: Path) -> None:
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        member = archive.read("token_kl.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("token_kl.npy", member)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("token_kl.npy", member)


PAYLOADS: dict[str, Callable[[Path], object]] = {
    "a shape beyond any memory": lambda p: _npz(p, _header((10**12,))),
    "a shape beyond any integer": lambda p: _npz(p, _header((10**30,))),
    "another shape": lambda p: _npz(p, _header((9, 1)), bytes(72)),
    "fewer numbers than its header says": lambda p: _npz(p, _header((9,)), bytes(8)),
    "objects": lambda p: _npz(p, _header((9,), "|O"), bytes(72)),
    "texts": lambda p: _npz(p, _header((9,), "<U2"), bytes(72)),
    "a name twice": _twice,
    "corrupt deflate": _corrupt,
    "encrypted": _encrypted,
    "no zip": lambda p: p.write_bytes(b"PK\x03\x04"),
    "no array": lambda p: zipfile.ZipFile(p, "w").writestr("token_kl.npy", b"x"),
}


@pytest.mark.parametrize("case", PAYLOADS)
def test_a_payload_that_is_none_is_refused(case: str, tmp_path: Path) -> None:
    SCORES.save(tmp_path, "candidate")
    PAYLOADS[case](tmp_path / "candidate.npz")
    with pytest.raises(ArtifactError, match="must hold arrays"):
        load_scores(tmp_path, "candidate", only=EVIDENCE_ARRAYS)


def test_a_payload_that_is_evidence_is_read_and_no_other(tmp_path: Path) -> None:
    SCORES.save(tmp_path, "candidate")
    read_ = load_scores(tmp_path, "candidate", only=EVIDENCE_ARRAYS)
    np.testing.assert_array_equal(read_.arrays["token_kl"], SCORES.arrays["token_kl"])
    np.savez(tmp_path / "candidate.npz", embedding=np.zeros(9))
    with pytest.raises(ArtifactError, match="is no evidence"):
        load_scores(tmp_path, "candidate", only=EVIDENCE_ARRAYS)


@pytest.mark.parametrize("tokens", ["1e10", "1e300", "-3", "2.5", "NaN", "1e999"])
def test_tokens_that_no_array_counts_are_refused(tokens: str, tmp_path: Path) -> None:
    SCORES.save(tmp_path, "candidate")
    path = tmp_path / "candidate.jsonl"
    head, row, *rest = path.read_text().splitlines()
    cells = row.strip("[]").split(", ")
    cells[1 + json.loads(head)["columns"].index("tokens")] = tokens
    path.write_text("\n".join([head, f"[{', '.join(cells)}]", *rest]) + "\n")
    with pytest.raises(ArtifactError, match="must hold arrays"):
        load_scores(tmp_path, "candidate", only=EVIDENCE_ARRAYS)


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '["x", ' + "9" * 400 + ", 1, 1, 1]", "{}", "[", '["x", 1, [], 1, 1]']
)
def test_rows_that_are_no_scores_are_refused(line: str, tmp_path: Path) -> None:
    SCORES.save(tmp_path, "candidate")
    with (tmp_path / "candidate.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ArtifactError, match="must hold per-example scores"):
        load_scores(tmp_path, "candidate")


def _measured(change: Callable[[Any], object]) -> Callable[[Path], object]:
    return lambda d: edit(d / "evidence/measurements.json", change)


def _deep(directory: Path) -> None:
    with (directory / "evidence/candidate.jsonl").open("a") as file:
        file.write("[" * 100_000 + "\n")


def _without(column: str) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        path = directory / "evidence/candidate.jsonl"
        path.write_text(path.read_text().replace(f'"{column}"', '"other"', 1))

    return change


def _first_time(measured: Any) -> None:
    measured["times_ms"]["candidate"]["run"][0] = 10**400


EVIDENCE: dict[str, Callable[[Path], object]] = {
    "deep rows": _deep,
    "no column": _without("correct"),
    "a pipe": lambda d: _pipe(d / "evidence/candidate.jsonl"),
    "no peaks": _measured(lambda m: m.update(candidate_memory=[])),
    "no time": _measured(lambda m: m.update(times_ms={})),
    "a time beyond any float": _measured(_first_time),
    "no size": _measured(lambda m: m["reference_size"].update(disk_bytes=0)),
    "a size below nothing": _measured(lambda m: m["reference_size"].update(disk_bytes=-5)),
    "a size in words": _measured(lambda m: m["candidate_size"].update(download_bytes="few")),
    "a peak below nothing": _measured(lambda m: m["reference_memory"].update(peak_mib=-1.0)),
    "another kind": _measured(lambda m: m.clear()),
}


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _hashed(directory: Path) -> None:
    manifest = read(directory / "manifest.json")
    (directory / "manifest.sig").unlink()
    write_manifest(directory, {k: v for k, v in manifest.items() if k not in ("files", "schema")})


@pytest.mark.parametrize("case", EVIDENCE)
def test_impossible_evidence_is_a_finding_for_every_command(
    case: str, altered: Path, signed: dict[str, Any], tmp_path: Path
) -> None:
    EVIDENCE[case](altered)
    _hashed(altered)
    found = exporter.verify(altered)
    assert not found.sound
    assert found.verdict is None
    with pytest.raises(InputError):
        exporter.compare(signed["result"].directory, altered)
    if case not in ("no time", "a time beyond any float"):  # times are taken anew
        with pytest.raises(InputError):
            exporter.check(altered, cache=tmp_path / "empty")


@pytest.mark.parametrize("name", ["report.json", "report.md", "sbom.cdx.json"])
def test_a_pipe_is_not_waited_for(name: str, altered: Path) -> None:
    _pipe(altered / name)
    assert any(m.place == name for m in exporter.verify(altered).mismatches)


KEYS: dict[str, Callable[[Any], object]] = {
    "no stages": lambda m: m.pop("stages"),
    "no source": lambda m: m.pop("source"),
    "no seed": lambda m: m.pop("seed"),
    "no target": lambda m: m.pop("target"),
    "a seed in words": lambda m: m.update(seed="x"),
    "no key": lambda m: m["stages"].pop("reference"),
    "a path for a key": lambda m: m["stages"].update(reference="/tmp"),
    "a key that climbs": lambda m: m["stages"].update(test="../exported/" + "0" * 19),
    "a key and more": lambda m: m["stages"].update(quality_reference="0" * 32 + "\n"),
}


@pytest.mark.parametrize("case", KEYS)
def test_check_takes_from_the_manifest_only_what_it_can_mean(
    case: str, altered: Path, tmp_path: Path
) -> None:
    edit(altered / "manifest.json", KEYS[case])
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        exporter.check(altered, cache=tmp_path / "empty")


def test_a_model_that_the_manifest_does_not_name_is_refused(
    altered: Path, signed: dict[str, Any], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(altered, tmp_path / "other"))
    (altered / MODEL).write_bytes(b"another model")
    for directory in (altered, other):
        edit(directory / "manifest.json", lambda m: m["files"].pop(MODEL))
        with pytest.raises(ArtifactError, match="must name model/model"):
            exporter.compare(signed["result"].directory, directory)
        with pytest.raises(ArtifactError, match="must name model/model"):
            exporter.check(directory, cache=tmp_path / "empty")
        assert any("must name model" in str(m) for m in exporter.verify(directory).mismatches)


def test_neither_manifest_nor_signature_may_lie_elsewhere(
    altered: Path, signed: dict[str, Any], tmp_path: Path
) -> None:
    signature = altered / "manifest.sig"
    signature.rename(tmp_path / "elsewhere.sig")
    signature.symlink_to(tmp_path / "elsewhere.sig")
    assert any(m.place == "manifest.sig" for m in exporter.verify(altered).mismatches)
    with pytest.raises(ArtifactError, match=r"manifest\.sig"):
        exporter.compare(signed["result"].directory, altered)
    signature.unlink()
    (altered / "manifest.json").rename(tmp_path / "elsewhere.json")
    (altered / "manifest.json").symlink_to(tmp_path / "elsewhere.json")
    calls: list[Callable[[], object]] = [
        lambda: exporter.verify(altered),
        lambda: exporter.check(altered, cache=tmp_path / "empty"),
        lambda: exporter.compare(signed["result"].directory, altered),
    ]
    for call in calls:
        with pytest.raises(ArtifactError, match="must lie inside the artifact"):
            call()

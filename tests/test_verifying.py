"""Verify: whatever is changed after the export is named, even when the hashes are fixed up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

import exporter
from exporter.artifact import write_manifest
from exporter.cli import main
from exporter.errors import ArtifactError, InputError
from exporter.report.json import read_report
from exporter.report.render import render
from tests import chain, tiny

PEM, RAW = serialization.Encoding.PEM, serialization.NoEncryption()
PKCS8 = serialization.PrivateFormat.PKCS8
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


def _keys(directory: Path) -> dict[str, Path]:
    """Key files of every kind, by name."""
    mine, other = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    curve = ec.generate_private_key(ec.SECP256R1())
    locked = serialization.BestAvailableEncryption(b"secret")
    files = {
        "private": mine.private_bytes(PEM, PKCS8, RAW),
        "public": mine.public_key().public_bytes(PEM, SPKI),
        "other": other.public_key().public_bytes(PEM, SPKI),
        "encrypted": mine.private_bytes(PEM, PKCS8, locked),
        "curve": curve.private_bytes(PEM, PKCS8, RAW),
        "curve-public": curve.public_key().public_bytes(PEM, SPKI),
        "junk": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "binary": bytes(range(256)),
        "huge": b"x" * 100_000,
        "empty": b"",
    }
    directory.mkdir()
    for name, pem in files.items():
        (directory / name).write_bytes(pem)
    return {name: directory / name for name in files} | {"directory": directory}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("verify")
    keys = _keys(root / "keys")
    one = chain.RECIPE | {"candidates": chain.RECIPE["candidates"][:1]}
    inputs: dict[str, Any] = {
        "model": tiny.checkpoint("bert", root / "bert"),
        "data": chain.text_data(root / "rows.jsonl"),
        "target": chain.quick_target(
            recipe=one, accuracy_drop_points=30.0, disk_size_ratio=0.9, latency_ratio=1.0
        ),
        "cache": root / "cache",
    }
    result = exporter.export(**inputs, out=root / "out", key=keys["private"])
    return {"root": root, "keys": keys, "result": result, "inputs": inputs}


@pytest.fixture
def copy(made: dict[str, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["result"].directory, tmp_path / "copy"))


def _fix_hashes(directory: Path) -> None:
    """What a forger does last: hashes in the manifest that match the files again."""
    content = _read(directory / "manifest.json")
    signature = directory / "manifest.sig"
    kept = signature.read_bytes()
    signature.unlink()
    write_manifest(directory, {k: v for k, v in content.items() if k not in ("files", "schema")})
    signature.write_bytes(kept)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _edit(path: Path, change: Callable[[Any], object]) -> None:
    content = _read(path)
    change(content)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _places(directory: Path, **options: Any) -> str:
    found = exporter.verify(directory, **options)
    assert found.exit_code == (1 if found.mismatches else 0)
    return "\n".join(map(str, found.mismatches))


def test_a_fresh_artifact_is_sound_and_its_verdicts_are_derived(made: dict[str, Any]) -> None:
    result = made["result"]
    found = exporter.verify(result.directory, key=made["keys"]["public"])
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
        lambda d: (d / "evidence/candidate.npz").write_bytes(b"PK"),
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
def test_every_file_is_held_against_the_manifest(case: str, copy: Path) -> None:
    damage, words = FILES[case]
    damage(copy)
    assert words in _places(copy)


UNREADABLE = ("is named in the manifest and missing", "cannot be read")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "model/../../secret", "x\0y", "y" * 5000, "\ud800"]
)
def test_names_that_leave_the_artifact_are_refused_unread(name: str, copy: Path) -> None:
    from exporter.cache import sha256_file

    secret = copy.parent / "secret"
    secret.write_text("secret")
    entry = {"sha256": sha256_file(secret), "size_bytes": 6}
    content = _read(copy / "manifest.json")
    content["files"][name] = entry
    (copy / "manifest.json").write_text(json.dumps(content))
    found = exporter.verify(copy)
    assert found.mismatches[0].place == name
    assert found.mismatches[0].rule in ("must lie inside the artifact", *UNREADABLE)
    found.to_text().encode()
    json.dumps(found.to_json(), ensure_ascii=False).encode()


OTHER = {"PASS": "FAIL", "FAIL": "INCONCLUSIVE", "INCONCLUSIVE": "FAIL"}


def _judgement(change: Callable[[Any], object], metric: str = "accuracy_drop_points") -> Any:
    def edit(directory: Path) -> None:
        def one(report: Any) -> None:
            change(next(j for j in report["judgements"] if j["metric"] == metric))

        _edit(directory / "report.json", one)

    return edit


def _all_wrong(directory: Path) -> None:
    """The candidate answered nothing right."""
    path = directory / "evidence/candidate.jsonl"
    head, *rows = path.read_text(encoding="utf-8").splitlines()
    column = 1 + json.loads(head)["columns"].index("correct")
    changed = []
    for row in map(json.loads, rows):
        row[column] = 0.0
        changed.append(json.dumps(row))
    path.write_text("\n".join([head, *changed]) + "\n", encoding="utf-8")


def _twice_as_fast(measurements: Any) -> None:
    times = measurements["times_ms"]["candidate"]
    for phase in times:
        times[phase] = [ms / 2 for ms in times[phase]]


def _other_model(directory: Path) -> None:
    path = directory / "model/model.onnx"
    path.write_bytes(path.read_bytes() + b"\0\0\0\0")


def _all_pass(directory: Path) -> None:
    """A forger who makes every page again from the edited report."""
    path = directory / "report.json"

    def better(report: Any) -> None:
        for judgement in report["judgements"]:
            judgement.update(measured=0.0, low=0.0, high=0.0, margin=judgement["limit"])

    _edit(path, better)
    for name, text in render(read_report(path)).items():
        (directory / name).write_text(text, encoding="utf-8")


FORGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "measured": (
        _judgement(lambda j: j.update(measured=-5.0)),
        "judgements.accuracy_drop_points.measured",
    ),
    "verdict": (
        _judgement(lambda j: j.update(verdict="INCONCLUSIVE")),
        'judgements.accuracy_drop_points.verdict: does not follow from the evidence: '
        'claimed "INCONCLUSIVE"',
    ),
    "bound": (
        _judgement(lambda j: j.update(high=j["high"] * 1.001), "latency_ratio"),
        "judgements.latency_ratio.high",
    ),
    "limit": (
        _judgement(lambda j: j.update(limit=0.5), "disk_size_ratio"),
        "judgements.disk_size_ratio.limit",
    ),
    "reason": (_judgement(lambda j: j.update(reason="Trust me.")), "accuracy_drop_points.reason"),
    "a judgement more": (
        lambda d: _edit(
            d / "report.json", lambda r: r["judgements"].append(dict(r["judgements"][0]))
        ),
        "report.json.metrics",
    ),
    "a judgement less": (
        lambda d: _edit(d / "report.json", lambda r: r["judgements"].pop(0)),
        "report.json.judgements.accuracy_drop_points",
    ),
    "overall": (
        lambda d: _edit(d / "report.json", lambda r: r.update(verdict=OTHER[r["verdict"]])),
        "report.json.verdict",
    ),
    "overall in the manifest": (
        lambda d: _edit(d / "manifest.json", lambda m: m.update(verdict=OTHER[m["verdict"]])),
        "manifest.json.verdict",
    ),
    "summary": (
        lambda d: _edit(d / "report.json", lambda r: r.update(summary="Perfect.")),
        "report.json.summary",
    ),
    "phases": (
        lambda d: _edit(d / "report.json", lambda r: r["phases"][0].update(ratio=0.01)),
        "report.json.phases[0].ratio",
    ),
    "another machine": (
        lambda d: _edit(d / "report.json", lambda r: r["environment"].update(cpu="Phone")),
        "report.json.environment.cpu",
    ),
    "another model": (
        lambda d: _edit(d / "report.json", lambda r: r["model"].update(name="better")),
        "report.json.model.name",
    ),
    "a verdict for each reader": (
        lambda d: (d / "report.json").write_text(
            (d / "report.json").read_text("utf-8").replace("{", '{"verdict": "PASS",', 1), "utf-8"
        ),
        "report.json: must be valid JSON, got a name stands twice",
    ),
    "no number": (
        lambda d: _edit(d / "report.json", lambda r: r.update(seed=float("nan"))),
        "report.json: must be valid JSON, got NaN",
    ),
    "what the report does not know": (
        lambda d: _edit(d / "report.json", lambda r: r.update(award="gold")),
        "report.json.award",
    ),
    "every page made again": (_all_pass, "accuracy_drop_points.high"),
    "html": (
        lambda d: (d / "report.html").write_text(
            (d / "report.html").read_text(encoding="utf-8") + " ", encoding="utf-8"
        ),
        "report.html: does not say what report.json says",
    ),
    "junit": (
        lambda d: (d / "junit.xml").write_text("<testsuites/>"),
        "junit.xml: does not say",
    ),
    "markdown": (lambda d: (d / "report.md").write_text("# PASS"), "report.md: does not say"),
    "edited answers": (_all_wrong, "judgements.accuracy_drop_points.measured"),
    "edited times": (
        lambda d: _edit(d / "evidence/measurements.json", _twice_as_fast),
        "judgements.latency_ratio.measured",
    ),
    "a wider margin": (
        lambda d: _edit(
            d / "manifest.json",
            lambda m: m["target"]["budgets"].update(accuracy_drop_points=50.0),
        ),
        "judgements.accuracy_drop_points.limit",
    ),
    "less confidence": (
        lambda d: _edit(
            d / "manifest.json", lambda m: m["target"]["evidence"].update(confidence=0.6)
        ),
        "judgements.accuracy_drop_points.high",
    ),
    "a model of another size": (_other_model, "candidate_size.disk_bytes"),
    "the bill": (
        lambda d: _edit(
            d / "sbom.cdx.json",
            lambda b: next(
                c for c in b["components"] if c["bom-ref"] == "source-model"
            )["hashes"][0].update(content="0" * 64),
        ),
        "sbom.cdx.json.source-model",
    ),
    "no bill": (lambda d: (d / "sbom.cdx.json").unlink(), "sbom.cdx.json: must be a bill"),
    "an earlier reading hidden from the report": (
        lambda d: _edit(
            d / "manifest.json",
            lambda m: m.update(test_readings={"earlier": 1, "candidates": ["a" * 32]}),
        ),
        "read once before",
    ),
    "an earlier reading miscounted": (
        lambda d: _edit(d / "manifest.json", lambda m: m["test_readings"].update(earlier=3)),
        "test_readings.earlier",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED)
def test_a_claim_that_was_edited_is_named_though_the_hashes_match(case: str, copy: Path) -> None:
    forge, words = FORGED[case]
    forge(copy)
    _fix_hashes(copy)
    found = _places(copy)
    assert words in found
    assert "differs from the hash" not in found


def test_swapped_evidence_is_named(tmp_path: Path) -> None:
    """Perplexities tell reference and candidate apart; equal accuracies would not."""
    result = exporter.export(
        tiny.checkpoint("llama", tmp_path / "llama"),
        data=chain.text_data(tmp_path / "rows.jsonl", labels=False),
        target=chain.quick_target(
            recipe=chain.RECIPE | {"candidates": chain.RECIPE["candidates"][1:2]}
        ),
        out=tmp_path / "out",
        cache=tmp_path / "cache",
    )
    assert not _places(result.directory)
    evidence = result.directory / "evidence"
    (evidence / "reference.jsonl").rename(tmp_path / "kept")
    (evidence / "candidate.jsonl").rename(evidence / "reference.jsonl")
    (tmp_path / "kept").rename(evidence / "candidate.jsonl")
    (result.directory / "manifest.sig").write_bytes(b"")
    _fix_hashes(result.directory)
    assert "judgements.perplexity_ratio.measured" in _places(result.directory)


def test_hashes_fixed_up_by_themselves_change_nothing(copy: Path) -> None:
    """The forger's last step is not what is caught."""
    _fix_hashes(copy)
    assert not _places(copy)


def test_only_a_signature_stops_who_makes_everything_again(
    copy: Path, made: dict[str, Any]
) -> None:
    """Evidence that is invented whole is consistent; the key is what the forger lacks."""
    from exporter.artifact import read_artifact
    from exporter.claims import check_claims
    from exporter.judge.verdict import overall
    from exporter.report.wording import explain

    _all_wrong(copy)
    judgements, _ = check_claims(read_artifact(copy))
    as_json = tuple(j.to_json() for j in judgements)
    report = replace(
        read_report(copy / "report.json"),
        judgements=as_json,
        verdict=overall(judgements).value,
        summary=explain(as_json),
    )
    for name, text in render(report).items():
        (copy / name).write_text(text, encoding="utf-8")
    _edit(copy / "manifest.json", lambda m: m.update(verdict=report.verdict))
    _fix_hashes(copy)
    assert not _places(copy)
    assert "is not the signature" in _places(copy, key=made["keys"]["public"])


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [path, *(leaf for k, v in value.items() for leaf in _leaves(v, (*path, k)))]
    if isinstance(value, list):
        return [path, *_leaves(value[0], (*path, 0))] if value else [path]
    return [path]


@pytest.mark.parametrize("junk", [None, -1, "x", [], {}, 1e308, 10**400, True])
@pytest.mark.parametrize("name", ["report.json", "evidence/measurements.json", "manifest.json"])
def test_whatever_stands_in_a_file_is_a_finding_and_no_crash(
    name: str, junk: Any, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.claims.render", lambda report: {})
    path = copy / name
    original = _read(path)
    for leaf in _leaves(original):
        if not leaf or leaf[0] in ("files", "schema", "recipe") or "recipe" in leaf:
            continue
        changed = json.loads(json.dumps(original))
        place = changed
        for part in leaf[:-1]:
            place = place[part]
        place[leaf[-1]] = junk
        path.write_text(json.dumps(changed))
        found = exporter.verify(copy)
        json.dumps(found.to_json(), allow_nan=False)
        if name != "manifest.json":  # its facts are its own; its signature covers them
            assert not found.sound


def test_signatures(copy: Path, made: dict[str, Any]) -> None:
    keys = made["keys"]
    assert "is not the signature of this manifest by this key" in _places(copy, key=keys["other"])
    signature = copy / "manifest.sig"
    whole = signature.read_bytes()
    signature.write_bytes(whole[:-1])
    assert "must be 64 bytes, got 63" in _places(copy, key=keys["public"])
    signature.write_bytes(bytes(64))
    assert "is not the signature" in _places(copy, key=keys["public"])
    signature.write_bytes(whole)
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert not _places(copy)
    assert "is not the signature" in _places(copy, key=keys["public"])
    signature.unlink()
    assert "manifest.sig: is missing" in _places(copy, key=keys["public"])
    assert exporter.verify(copy).signature == "not signed"


BAD_KEYS = {
    "public": "must be a private key, got a public one",
    "encrypted": "must not be encrypted",
    "curve": "must be an Ed25519 key, got EC;",
    "junk": "must be a private key in PEM",
    "binary": "must be a private key in PEM",
    "empty": "must be a private key in PEM",
    "huge": "is too large",
    "directory": "cannot be read",
}


@pytest.mark.parametrize("name", BAD_KEYS)
def test_a_key_that_cannot_sign_is_refused_before_any_work(
    name: str, made: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=BAD_KEYS[name]) as refused:
        exporter.export(
            "nowhere/at-all",
            data=None,
            out=tmp_path / "out",
            cache=tmp_path / "cache",
            key=made["keys"][name],
        )
    assert refused.value.exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["private", "encrypted", "curve-public", "junk", "binary", "huge"])
def test_a_key_that_cannot_check_is_refused(name: str, made: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--key"):
        exporter.verify(made["result"].directory, key=made["keys"][name])
    with pytest.raises(InputError, match="cannot be read"):
        exporter.verify(made["result"].directory, key=made["root"] / "none.pem")


def test_neither_the_key_nor_its_path_is_in_the_artifact(made: dict[str, Any]) -> None:
    private: Path = made["keys"]["private"]
    secret = private.read_bytes().splitlines()[1]
    for path in made["result"].directory.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert secret not in content
            assert str(private).encode() not in content
            assert b"--key" not in content


def test_a_second_signed_run_is_the_same_and_an_unsigned_one_has_no_signature(
    made: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    exporter.export(**made["inputs"], out=out, key=made["keys"]["private"])
    first = {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    exporter.export(**made["inputs"], out=out, key=made["keys"]["private"])
    assert {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()} == first
    exporter.export(**made["inputs"], out=out)
    assert not (out / "manifest.sig").exists()
    assert (out / "manifest.json").read_bytes() == first["manifest.json"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_openssl_commands_of_the_documentation(copy: Path, tmp_path: Path) -> None:
    from exporter.signature import fingerprint, read_private_key, read_public_key, sign

    page = Path(__file__).resolve().parent.parent / "docs" / "verify.md"
    commands = [
        line.strip()
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("    openssl ")
    ]
    assert len(commands) == 3
    (tmp_path / "dist").mkdir()
    copy.rename(tmp_path / "dist" / "artifact")
    artifact = tmp_path / "dist" / "artifact"

    def run(command: str) -> str:
        return subprocess.run(
            command, shell=True, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    for command in commands[:2]:
        run(command)
    sign(artifact, read_private_key(tmp_path / "private.pem"))
    public = tmp_path / "public.pem"
    assert exporter.verify(artifact, key=public).sound
    assert "Verified Successfully" in run(commands[2])
    printed = run("openssl pkey -pubin -in public.pem -outform DER | sha256sum").split()[0]
    assert printed == fingerprint(read_public_key(public))


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
    copy: Path,
    made: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    public = made["keys"]["public"]
    code, out, _ = _command(capsys, monkeypatch, "verify", copy, "--key", public)
    assert code == 0
    for words in ("sound", "none missing", "derived again", "accuracy drop", "signature  valid"):
        assert words in out
    code, out, err = _command(capsys, monkeypatch, "verify", copy.parent, "--json")
    assert (code, json.loads(out)["exit_code"]) == (2, 2)
    assert err.count("error: ") == 1
    code, _, err = _command(capsys, monkeypatch, "verify", copy, "--key", copy / "none.pem")
    assert code == 2
    assert "cannot be read, got No such file" in err
    _judgement(lambda j: j.update(measured=-5.0))(copy)
    _fix_hashes(copy)
    code, out, err = _command(capsys, monkeypatch, "verify", copy, "--key", public, "--json")
    found = json.loads(out)
    assert code == 1
    assert not found["sound"]
    edited = [m for m in found["mismatches"] if m["place"].endswith("points.measured")]
    assert edited[0]["claimed"] == -5.0
    assert edited[0]["derived"] == made["result"].judgements[0].measured
    code, out, err = _command(capsys, monkeypatch, "verify", copy)
    assert code == 1
    assert "NOT what it claims to be" in out
    assert "claimed -5.0, derived" in out
    assert "Traceback" not in out + err


def test_verifying_needs_neither_a_runtime_nor_a_training_framework(made: dict[str, Any]) -> None:
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
    arguments = ["verify", made["result"].directory, "--key", made["keys"]["public"]]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "sound" in done.stdout

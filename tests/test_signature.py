"""Signatures: valid by one key over one manifest, and no other key is taken for one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import exporter
from exporter.errors import InputError
from tests.signed import places


def test_signatures(altered: Path, signed: dict[str, Any]) -> None:
    keys = signed["keys"]
    assert "is not the signature of this manifest by this key" in places(altered, key=keys["other"])
    signature = altered / "manifest.sig"
    whole = signature.read_bytes()
    signature.write_bytes(whole[:-1])
    assert "must be 64 bytes, got 63" in places(altered, key=keys["public"])
    signature.write_bytes(bytes(64))
    assert "is not the signature" in places(altered, key=keys["public"])
    signature.write_bytes(whole)
    manifest = altered / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert not places(altered)
    assert "is not the signature" in places(altered, key=keys["public"])
    signature.unlink()
    assert "manifest.sig: is missing" in places(altered, key=keys["public"])
    assert exporter.verify(altered).signature == "not signed"


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
    name: str, signed: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=BAD_KEYS[name]) as refused:
        exporter.export(
            "nowhere/at-all",
            data=None,
            out=tmp_path / "out",
            cache=tmp_path / "cache",
            key=signed["keys"][name],
        )
    assert refused.value.exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["private", "encrypted", "curve-public", "junk", "binary", "huge"])
def test_a_key_that_cannot_check_is_refused(name: str, signed: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--key"):
        exporter.verify(signed["result"].directory, key=signed["keys"][name])
    with pytest.raises(InputError, match="cannot be read"):
        exporter.verify(signed["result"].directory, key=signed["root"] / "none.pem")


def test_neither_the_key_nor_its_path_is_in_the_artifact(signed: dict[str, Any]) -> None:
    private: Path = signed["keys"]["private"]
    secret = private.read_bytes().splitlines()[1]
    for path in signed["result"].directory.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert secret not in content
            assert str(private).encode() not in content
            assert b"--key" not in content


def test_a_second_signed_run_is_the_same_and_an_unsigned_one_has_no_signature(
    signed: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    target = signed["inputs"]["target"]
    # an undecided latency would be measured anew
    budgets = target.budgets.model_copy(update={"latency_ratio": 0.01})
    inputs = {**signed["inputs"], "target": target.model_copy(update={"budgets": budgets})}
    exporter.export(**inputs, out=out, key=signed["keys"]["private"])
    first = {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    exporter.export(**inputs, out=out, key=signed["keys"]["private"])
    assert {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()} == first
    exporter.export(**inputs, out=out)
    assert not (out / "manifest.sig").exists()
    assert (out / "manifest.json").read_bytes() == first["manifest.json"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_openssl_commands_of_the_documentation(altered: Path, tmp_path: Path) -> None:
    from exporter.signature import fingerprint, read_private_key, read_public_key, sign

    page = Path(__file__).resolve().parent.parent / "docs" / "verify.md"
    commands = [
        line.strip()
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("    openssl ")
    ]
    assert len(commands) == 3
    (tmp_path / "dist").mkdir()
    altered.rename(tmp_path / "dist" / "artifact")
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

"""What tests of verifying share: keys of every kind, and a forger's tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

import exporter
from exporter.artifact import write_manifest
from exporter.target import Target
from tests import chain, tiny

PEM, RAW = serialization.Encoding.PEM, serialization.NoEncryption()
PKCS8 = serialization.PrivateFormat.PKCS8
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


def write_keys(directory: Path) -> dict[str, Path]:
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


def signed_classifier(root: Path, target: Target) -> dict[str, Any]:
    """A tiny classifier's signed artifact: `root`, `keys`, `result`, the `inputs` of its run."""
    keys = write_keys(root / "keys")
    inputs: dict[str, Any] = {
        "model": tiny.checkpoint("bert", root / "bert"),
        "data": chain.text_data(root / "rows.jsonl"),
        "target": target,
        "cache": root / "cache",
    }
    result = exporter.export(**inputs, out=root / "out", key=keys["private"])
    return {"root": root, "keys": keys, "result": result, "inputs": inputs}


def fix_hashes(directory: Path) -> None:
    """What a forger does last: hashes in the manifest that match the files again."""
    content = read(directory / "manifest.json")
    signature = directory / "manifest.sig"
    kept = signature.read_bytes() if signature.exists() else None
    signature.unlink(missing_ok=True)
    write_manifest(directory, {k: v for k, v in content.items() if k not in ("files", "schema")})
    if kept is not None:
        signature.write_bytes(kept)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = read(path)
    change(content)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def places(directory: Path, **options: Any) -> str:
    found = exporter.verify(directory, **options)
    assert found.exit_code == (1 if found.mismatches else 0)
    return "\n".join(map(str, found.mismatches))

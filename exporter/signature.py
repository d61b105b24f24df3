"""The signature of a manifest: Ed25519 (RFC 8032) over its bytes, 64 raw bytes beside it.

The manifest holds the hash of every other file, so that its signature covers them all. Keys are
PEM files as openssl writes them; docs/verify.md says how.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.artifact import MANIFEST, SIGNATURE
from exporter.errors import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SIGNATURE_BYTES = 64
MAX_KEY_BYTES = 1 << 16
_MAKE = "make one with `openssl genpkey -algorithm ed25519 -out private.pem`."
_DERIVE = "derive one with `openssl pkey -in private.pem -pubout -out public.pem`."


def read_private_key(path: Path | str) -> Ed25519PrivateKey:
    """The key to sign with.

    Raises:
        InputError: it cannot be read, is encrypted, or is no private Ed25519 key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    place, pem = _read(path)
    if b"PUBLIC KEY-----" in pem:
        raise InputError(place, "must be a private key", got="a public one", remedy=_MAKE)
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as error:  # how the library says that a password is missing
        raise InputError(
            place,
            "must not be encrypted",
            remedy="decrypt it with `openssl pkey -in KEY -out private.pem`.",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(place, "must be a private key in PEM", remedy=_MAKE) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(place, "must be an Ed25519 key", got=_kind(key), remedy=_MAKE)
    return key


def read_public_key(path: Path | str) -> Ed25519PublicKey:
    """The key to check a signature with.

    Raises:
        InputError: it cannot be read, or is no public Ed25519 key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    place, pem = _read(path)
    if b"PRIVATE KEY-----" in pem:
        raise InputError(place, "must be a public key", got="a private one", remedy=_DERIVE)
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(place, "must be a public key in PEM", remedy=_DERIVE) from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(place, "must be an Ed25519 key", got=_kind(key), remedy=_DERIVE)
    return key


def sign(directory: Path, key: Ed25519PrivateKey) -> None:
    """Write `manifest.sig` beside the finished manifest of `directory`."""
    (directory / SIGNATURE).write_bytes(key.sign((directory / MANIFEST).read_bytes()))


def signature_fault(directory: Path, key: Ed25519PublicKey) -> str | None:
    """Why the manifest is not signed by `key`; None when it is."""
    from cryptography.exceptions import InvalidSignature

    path = directory / SIGNATURE
    if path.is_symlink() or not path.is_file():
        return "is missing: the artifact is not signed"
    try:
        if (size := path.stat().st_size) != SIGNATURE_BYTES:
            return f"must be {SIGNATURE_BYTES} bytes, got {size}"
        key.verify(path.read_bytes(), (directory / MANIFEST).read_bytes())
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except InvalidSignature:
        return "is not the signature of this manifest by this key"
    return None


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the key's DER, as `openssl pkey -pubin -outform DER | sha256sum` prints it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _read(path: Path | str) -> tuple[str, bytes]:
    place = f"--key {path}"
    try:
        with Path(path).open("rb") as file:
            pem = file.read(MAX_KEY_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(
            place,
            "cannot be read",
            got=getattr(error, "strerror", None) or error,
            remedy="give the path of a PEM file.",
        ) from error
    if len(pem) > MAX_KEY_BYTES:
        raise InputError(place, "is too large for a key", remedy="give the path of a PEM file.")
    return place, pem


def _kind(key: object) -> str:
    """The name of a key's algorithm: `RSA` of `RSAPrivateKey`."""
    name = type(key).__name__.lstrip("_")
    return name.split("Private")[0].split("Public")[0]

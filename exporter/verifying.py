"""Verify an artifact: files against the manifest, verdicts against the evidence, the signature.

Nothing is measured and no model runs: a laptop without a runtime can do it, offline. What an
honest run derived from its evidence is derived again, so that a claim which was edited afterwards
differs from it, even when the hashes in the manifest were edited too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifact import (
    MANIFEST,
    MODEL,
    SIGNATURE,
    Artifact,
    prove_file,
    read_artifact,
    unnamed_files,
)
from exporter.claims import check_claims
from exporter.errors import EXIT_FAIL, EXIT_PASS, InputError
from exporter.judge.verdict import Judgement, Verdict, overall
from exporter.mismatches import Mismatch, differences
from exporter.report.wording import plain
from exporter.signature import fingerprint, read_public_key, signature_fault
from exporter.target import Target, load_target

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


@dataclass(frozen=True)
class Verification:
    """What came of verifying an artifact.

    Attributes:
        files: how many the manifest names.
        size_bytes: of those that are what the manifest says.
        judgements: as the evidence gives them; empty when it cannot be read.
        signature: in words.
        mismatches: everything that is not as claimed; empty for a sound artifact.
    """

    directory: Path
    files: int
    size_bytes: int
    judgements: tuple[Judgement, ...]
    signature: str
    mismatches: tuple[Mismatch, ...]

    @property
    def sound(self) -> bool:
        """True when the artifact is what it claims to be, whatever its verdict."""
        return not self.mismatches

    @property
    def verdict(self) -> Verdict | None:
        """Of all budgets, derived from the evidence; None when it cannot be read."""
        return overall(self.judgements) if self.judgements else None

    @property
    def exit_code(self) -> int:
        """0 sound, 1 not what it claims to be."""
        return EXIT_PASS if self.sound else EXIT_FAIL

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "sound": self.sound,
            "artifact": str(self.directory),
            "files": self.files,
            "size_bytes": self.size_bytes,
            "verdict": self.verdict.value if self.verdict else None,
            "judgements": [judgement.to_json() for judgement in self.judgements],
            "signature": self.signature,
            "mismatches": [mismatch.to_json() for mismatch in self.mismatches],
        }

    def to_text(self) -> str:
        """A few lines for people: what was verified, or all that differs."""
        lines = [
            plain(f"{self.directory}: {'sound' if self.sound else 'NOT what it claims to be'}")
        ]
        lines += [f"  {plain(str(mismatch))}" for mismatch in self.mismatches]
        if self.sound:
            each = "; ".join(
                f"{j.title} {j.verdict}, limit {j.limit:g} {j.unit}".rstrip()
                for j in self.judgements
            )
            size = f"{self.size_bytes:,} bytes"
            lines += [
                f"  files      {self.files} as the manifest says, {size}; none missing, none more",
                f"  verdict    {self.verdict}, derived again from the evidence ({plain(each)})",
                "  reports    say what the evidence says",
            ]
        return "\n".join([*lines, f"  signature  {self.signature}"])


def verify(
    artifact: Path | str,
    *,
    key: Path | str | None = None,
    target: str | Path | Target | None = None,
) -> Verification:
    """Verify that an artifact is what it claims to be; nothing is run or written.

    Args:
        artifact: directory.
        key: PEM file of the public Ed25519 key that must have signed it.
        target: profile that it must have been judged against, its recipe aside; None takes the
            artifact's own word for budgets and confidence.

    Raises:
        ArtifactError: it is no artifact at all.
        InputError: the key or the profile cannot be used.
    """
    profile = load_target(target) if isinstance(target, str | Path) else target
    public = None if key is None else read_public_key(key)
    found = read_artifact(artifact)
    size_bytes, mismatches = _files(found)
    signature, unsigned = _signature(found, public)
    judgements, underived = check_claims(found)
    return Verification(
        found.directory,
        len(found.manifest["files"]),
        size_bytes,
        judgements,
        signature,
        (*mismatches, *unsigned, *_other_target(found, profile), *underived),
    )


def _other_target(artifact: Artifact, profile: Target | None) -> list[Mismatch]:
    """Where the target in the manifest is not the profile that was asked for."""
    if profile is None:
        return []
    claimed = artifact.manifest.get("target")
    own = {k: v for k, v in claimed.items() if k != "recipe"} if isinstance(claimed, dict) else {}
    asked = profile.model_dump(mode="json", exclude={"recipe"})
    return differences(f"{MANIFEST}: target, against the profile", own, asked)


def _files(artifact: Artifact) -> tuple[int, list[Mismatch]]:
    """Bytes of all files that match, and every file that does not, is missing or is too many."""
    size_bytes = 0
    mismatches = []
    for name, entry in artifact.manifest["files"].items():
        try:
            size = prove_file(artifact, name)
        except InputError as error:
            mismatches.append(Mismatch(name, error.rule))
            continue
        size_bytes += size
        mismatches += differences(f"{MANIFEST}: {name}.size_bytes", entry.get("size_bytes"), size)
    if MODEL not in artifact.manifest["files"]:
        mismatches.append(Mismatch(MANIFEST, f"must name {MODEL}"))
    mismatches += [Mismatch(n, "is not named in the manifest") for n in unnamed_files(artifact)]
    return size_bytes, mismatches


def _signature(artifact: Artifact, key: Ed25519PublicKey | None) -> tuple[str, list[Mismatch]]:
    """What there is to say of the signature, and what is wrong with it."""
    if key is None:
        signed = (artifact.directory / SIGNATURE).exists()
        return ("signed, not checked: give --key" if signed else "not signed"), []
    fault = signature_fault(artifact.directory, key)
    if fault is not None:
        return f"not valid: {SIGNATURE} {fault}", [Mismatch(SIGNATURE, fault)]
    return f"valid, by the key with SHA-256 {fingerprint(key)}", []

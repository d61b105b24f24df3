"""Packages of another architecture come without root, and this machine does not notice."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from exporter.devices import debian
from exporter.devices.debian import fetch, unpack
from exporter.errors import DeviceError, DeviceMissing
from tests.devices.emulated import offline

AARCH64 = 183  # e_machine in ELF
STATUS = Path("/var/lib/dpkg/status")


@pytest.fixture
def _online() -> None:
    if offline():
        pytest.skip(f"no packages come here: {offline()} To see why: apt-get update")


def _answer(code: int, stdout: str = "", stderr: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], code, stdout, stderr)


@pytest.mark.usefixtures("_online")
def test_a_package_and_what_it_needs_are_for_that_architecture(tmp_path: Path) -> None:
    before = STATUS.read_bytes()
    (alone,) = fetch(["libacl1"], "arm64", dependencies=False)
    debs = fetch(["libacl1"], "arm64", dependencies=True)
    assert alone in debs
    names = {deb.name.partition("_")[0] for deb in debs}
    assert {"libacl1", "libc6"} <= names
    unpack([alone], tmp_path / "root")
    (library,) = (p for p in (tmp_path / "root").rglob("libacl.so.*") if not p.is_symlink())
    assert int.from_bytes(library.read_bytes()[18:20], "little") == AARCH64
    assert STATUS.read_bytes() == before


@pytest.mark.usefixtures("_online")
def test_a_damaged_download_is_fetched_again(tmp_path: Path) -> None:
    (deb,) = fetch(["libacl1"], "arm64", dependencies=False)
    whole = deb.read_bytes()
    deb.write_bytes(whole[:1000])
    assert fetch(["libacl1"], "arm64", dependencies=False) == [deb]
    assert deb.read_bytes() == whole
    deb.write_bytes(b"\0" * len(whole))
    fetch(["libacl1"], "arm64", dependencies=True)
    assert deb.read_bytes() == whole


@pytest.mark.usefixtures("_online")
def test_a_package_that_no_source_has() -> None:
    with pytest.raises(DeviceMissing, match="must offer no-such-package for arm64"):
        fetch(["no-such-package"], "arm64", dependencies=True)


def test_a_broken_connection_is_no_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPORTER_CACHE", str(tmp_path))
    monkeypatch.setattr(debian, "has_apt", lambda: True)
    failed = _answer(100, stderr="E: Failed to fetch x  Temporary failure resolving 'mirror'\n")
    absent = _answer(100, stderr="E: Unable to locate package libacl1\n")
    answers = {"update": failed, "--simulate": absent}
    monkeypatch.setattr(debian, "_run", lambda command, *_: answers[command[4]])
    with pytest.raises(DeviceError, match=r"Temporary failure.*run it again") as raised:
        fetch(["libacl1"], "arm64", dependencies=True)
    assert not isinstance(raised.value, DeviceMissing)


def test_a_machine_without_apt_is_told_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceMissing, match="no apt-get and dpkg; use a Debian or Ubuntu"):
        fetch(["libacl1"], "arm64", dependencies=True)


@pytest.mark.usefixtures("_online")
def test_a_package_that_is_damaged_does_not_unpack(tmp_path: Path) -> None:
    (tmp_path / "x.deb").write_bytes(b"no package")
    with pytest.raises(DeviceError, match="not unpacked"):
        unpack([tmp_path / "x.deb"], tmp_path / "root")


def test_what_apt_says_it_fetched_is_held_against_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror, or a proxy, may give another file of the same length, and apt may be content."""
    monkeypatch.setenv("EXPORTER_DEVICES", str(tmp_path))
    monkeypatch.setattr(debian, "has_apt", lambda: True)
    told = hashlib.sha256(b"whole").hexdigest()
    given = [b"wrong", b"whole", None]

    def apt(command: list[str], folder: Path, _: object) -> subprocess.CompletedProcess[str]:
        if command[4] == "--print-uris":
            return _answer(0, f"'http://mirror/a.deb' a_1_arm64.deb 5 SHA256:{told}\n")
        if command[4] == "download":
            content = given.pop(0)
            if content is not None:
                (folder / "a_1_arm64.deb").write_bytes(content)
        return _answer(0)

    monkeypatch.setattr(debian, "_run", apt)
    with pytest.raises(DeviceError, match=r"a_1_arm64\.deb did not come whole; run it again"):
        fetch(["a"], "arm64", dependencies=False)
    (deb,) = fetch(["a"], "arm64", dependencies=False)
    assert deb.read_bytes() == b"whole"
    deb.unlink()
    with pytest.raises(DeviceError, match="did not come whole"):
        fetch(["a"], "arm64", dependencies=False)

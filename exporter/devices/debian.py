"""Debian packages of any architecture, from this machine's own apt sources, without root.

apt works on directories of its own here: this machine's packages and lists stay as they are.
What it fetches is signed and hashed as always, and a download that was cut goes on where it was.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from exporter.cache import sha256_file
from exporter.devices.store import downloads
from exporter.errors import DeviceError, DeviceMissing

TIMEOUT_S = 600
# `Inst libc6 (2.36-9 Debian:12/stable [arm64])`, as apt-get says that it would install a package
_WOULD_INSTALL = re.compile(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) ", re.MULTILINE)
# `'http://...' libc6_2.36-9_arm64.deb 2312832 SHA256:2b0e...`, as it says what it would download
_NAMED = re.compile(r"^'\S+' (\S+) (\d+) SHA256:([0-9a-f]{64})$", re.MULTILINE)
_NOT_OFFERED = re.compile(
    r"^E: (?:Unable to locate package|Package '?\S+'? has no installation|"
    r"Can't find a source|Unable to correct problems|Version ).*$",
    re.MULTILINE,
)
# Read after the configuration of this machine, whose proxies and preferences hold here too, but
# not its hooks. Of the indexes only the lists of packages are wanted: others are large. A source
# that does not answer, or not for this architecture, must not keep the others waiting for long.
_CONFIGURATION = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
#clear Acquire::IndexTargets;
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Get::Assume-Yes "true";
APT::Sandbox::User "{user}";
Acquire::Languages "none";
Acquire::PDiffs "false";
Acquire::GzipIndexes "true";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Acquire::IndexTargets::deb::Packages {{
  MetaKey "$(COMPONENT)/binary-$(ARCHITECTURE)/Packages";
  flatMetaKey "Packages";
  ShortDescription "Packages";
  Description "$(RELEASE)/$(COMPONENT) $(ARCHITECTURE) Packages";
  flatDescription "$(RELEASE) Packages";
}};
Dir::State "{folder}/state";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/state/status";
Dir::State::extended_states "{folder}/state/extended_states";
Dir::Cache "{folder}/cache";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Cache::archives "{folder}/archives";
Dir::Log "{folder}/log";
"""


def has_apt() -> bool:
    """True when this machine has apt-get and dpkg."""
    return bool(shutil.which("apt-get") and shutil.which("dpkg"))


def host_architecture() -> str:
    """This machine's architecture as Debian calls it, such as `amd64`.

    Raises:
        DeviceMissing: it is no Debian and no Ubuntu.
    """
    _require_apt()
    return _run(["dpkg", "--print-architecture"], Path("/"), dict(os.environ)).stdout.strip()


def fetch(names: Sequence[str], architecture: str, *, dependencies: bool) -> list[Path]:
    """The newest .deb files of `names` that this machine's apt sources offer.

    Args:
        names: of packages, such as `python3-minimal`.
        architecture: Debian's word, such as `arm64`; `all` packages count as of each.
        dependencies: also all they depend on, down to libc6, as on an empty system.

    Returns:
        files in the user's cache, sorted by name; the next call takes those that are there.

    Raises:
        DeviceMissing: no apt here, or its sources do not offer a package.
        DeviceError: a download failed.
    """
    _require_apt()
    with _private_apt(architecture) as apt:
        # A third-party source that fails is none of our business: what counts is whether the
        # packages are found. Its complaint is kept for that case.
        updated = apt("update")
        wanted = list(names)
        if dependencies:
            found = apt("--simulate", "install", *names)
            if found.returncode:
                raise _failed(names, architecture, found, updated)
            wanted = [f"{name}={version}" for name, version in _WOULD_INSTALL.findall(found.stdout)]
        # From an empty folder: files that lie in it already would not be named.
        found = apt("--print-uris", "download", *wanted, folder=apt.archives.with_name("log"))
        if found.returncode:
            raise _failed(names, architecture, found, updated)
        files = {
            apt.archives / name: (int(size), sha256)
            for name, size, sha256 in _NAMED.findall(found.stdout)
        }
        # A shorter file goes on where it was cut; of one that is long enough apt reads no byte.
        for path, (size, sha256) in files.items():
            if path.is_file() and path.stat().st_size >= size and sha256_file(path) != sha256:
                path.unlink()
        fetched = apt("download", *wanted)
        if fetched.returncode:
            raise _failed(names, architecture, fetched, updated)
        damaged = [
            path.name
            for path, (_, sha256) in files.items()
            if not path.is_file() or sha256_file(path) != sha256
        ]
        if damaged or not files:
            raise DeviceError(
                f"apt-get ({architecture}): {', '.join(damaged or names)} did not come whole; "
                "run it again."
            )
        return sorted(files)


def unpack(debs: Sequence[Path], root: Path) -> None:
    """Unpack the files of packages below `root`; their scripts do not run.

    Raises:
        DeviceError: one is damaged, or the disk is full.
    """
    root.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        done = _run(["dpkg", "-x", str(deb), str(root)], root, dict(os.environ))
        if done.returncode:
            raise DeviceError(f"{deb.name}: not unpacked: {_last_line(done.stderr)}")


@contextmanager
def _private_apt(architecture: str) -> Iterator[_Apt]:
    """apt-get on its own directories, for one process at a time."""
    folder = downloads() / f"apt-{architecture}"
    for name in ("state", "lists/partial", "cache", "archives/partial", "log"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "state" / "status").touch()
    configuration = folder / "apt.conf"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # As root apt would download as the user _apt, who may not write into a user's cache.
        user = "root" if os.geteuid() == 0 else ""
        configuration.write_text(
            _CONFIGURATION.format(architecture=architecture, user=user, folder=folder.resolve()),
            encoding="utf-8",
        )
        try:
            yield _Apt(configuration, folder / "archives")
        finally:
            for path in (folder / "cache").glob("*.bin"):
                path.unlink()


class _Apt:
    def __init__(self, configuration: Path, archives: Path) -> None:
        self._configuration, self.archives = configuration, archives

    def __call__(
        self, *arguments: str, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = ["apt-get", "-q", "-c", str(self._configuration), *arguments]
        env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        return _run(command, folder or self.archives, env)


def _run(command: list[str], folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            f"{command[0]}: not finished after {TIMEOUT_S} s; what was fetched is kept, "
            "so run it again on a better connection."
        ) from error


def _require_apt() -> None:
    if not has_apt():
        raise DeviceMissing(
            "devices",
            "packages of Debian are needed, and this machine has no apt-get and dpkg",
            remedy="use a Debian or Ubuntu machine or container.",
        )


def _failed(
    names: Sequence[str],
    architecture: str,
    done: subprocess.CompletedProcess[str],
    updated: subprocess.CompletedProcess[str],
) -> DeviceError | DeviceMissing:
    """What a failed apt-get means: packages that no source has, or a broken connection."""
    missing = _NOT_OFFERED.search(done.stderr)
    if missing and not updated.returncode:
        return DeviceMissing(
            "apt sources",
            f"must offer {', '.join(names)} for {architecture}",
            got=missing.group().removeprefix("E: "),
            remedy=f"add a source for {architecture} to /etc/apt/sources.list.d.",
        )
    told = updated if updated.returncode else done
    return DeviceError(
        f"apt-get ({architecture}): {_last_line(told.stderr)}; "
        "check the connection and run it again: what was fetched is kept."
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("E: ")), (lines or ["it failed"])[-1])[
        :300
    ]

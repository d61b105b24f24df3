"""What names a machine behind ssh, before any server is asked."""

from __future__ import annotations

import shutil

import pytest

from exporter.devices.registry import kind_of, open_device
from exporter.errors import DeviceMissing, InputError


@pytest.mark.parametrize(
    "name", ["ssh://pi@board:2222", "ssh://board", "ssh://[fe80::1%eth0]:22", "ssh:board"]
)
def test_names_are_urls(name: str) -> None:
    kind, option = kind_of(name)
    assert kind.name == "ssh"
    assert option == name.removeprefix("ssh:").removeprefix("//")


@pytest.mark.parametrize(
    "name", ["ssh", "ssh://", "ssh://a b", "ssh://-oProxyCommand=x", "ssh://a/b"]
)
def test_what_is_no_place_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/ssh")  # it is not even started
    with pytest.raises(InputError, match="ssh://user@host"):
        open_device(name)


def test_the_client_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DeviceMissing, match="apt-get install -y openssh-client"):
        open_device("ssh://board")

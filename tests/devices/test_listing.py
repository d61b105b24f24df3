"""What `exporter devices` lists and installs, in words that are true and fit a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from exporter.devices.device import Missing
from exporter.devices.listing import Listed, as_text, install, listed
from exporter.devices.store import install as store_install
from exporter.display import progress_for
from exporter.errors import InputError


def test_what_only_a_client_reaches_is_not_called_usable() -> None:
    rows = {row.kind: row for row in listed()}
    assert rows["ssh"].names == ("ssh://user@host:port",)
    assert rows["adb"].names == ("adb:SERIAL",)
    assert {kind for kind, row in rows.items() if row.client} == {"ssh", "adb"}
    here = as_text([Listed("ssh", "a machine", ("ssh://user@host:port",), (), client=True)])
    assert "usable" not in here
    assert "whether a device is there" in here


def test_the_list_fits_80_columns_and_cuts_no_name() -> None:
    lack = Missing("the emulator qemu-user", "exporter devices install arm64 " * 4)
    rows = [*listed(), Listed("other", "long " * 40, ("other:" + "x" * 40,) * 3, (lack,))]
    text = as_text(rows)
    assert max(map(len, text.splitlines())) <= 80
    for row in rows:
        assert set(row.names) <= set(text.split())
    assert "not usable here" in text


def test_an_unknown_kind_is_refused_in_words_of_its_own() -> None:
    with pytest.raises(InputError, match="arm65: unknown device 'arm65'; did you mean") as caught:
        install(["arm65"], progress_for(Console(file=io.StringIO())))
    assert "--on" not in str(caught.value)


def test_nothing_is_said_to_be_fetched_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPORTER_DEVICES", str(tmp_path))
    file = io.StringIO()
    for _ in range(2):
        stage = progress_for(Console(file=file)).stage("fetch the thing")
        store_install("thing", {}, lambda folder: (folder / "file").touch(), stage)
    assert file.getvalue().splitlines() == ["fetch the thing ..."]


def test_what_needs_nothing_is_ready_without_a_word_more() -> None:
    file = io.StringIO()
    assert install(["local"], progress_for(Console(file=file))) == ("local: ready", True)
    assert not file.getvalue()

"""Progress in a log and on a terminal: what is named is shown as it is named."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from exporter.display import progress_for

NAME = "/data/:phone:/[red]model[/red] [/]"


@pytest.mark.parametrize("terminal", [False, True])
def test_names_are_no_markup_and_no_emoji(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.display.QUIET_S", 0.0)
    file = io.StringIO()
    console = Console(
        file=file, width=80, force_terminal=terminal, color_system=None, legacy_windows=False
    )
    shown = progress_for(console)
    shown.note(f"note {NAME}")
    with shown.stage(f"stage {NAME}", 2) as bar:
        bar.advance()
    text = file.getvalue()
    assert f"note {NAME}" in text
    ended = text.rstrip().splitlines()[-1]
    assert f"stage {NAME}" in ended
    assert " 0 s" in ended

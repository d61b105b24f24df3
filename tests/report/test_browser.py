"""The report in a real browser: no console message, no sideways scroll on a phone."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from exporter.report.html import to_html
from tests.report import samples

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed: apt-get install -y chromium"
)

# A page of our own around the report asks the browser how wide the report became: the report
# itself runs no script. `--dump-dom` then prints what was found.
FRAME = """<!doctype html><title>frame</title>
<iframe id="f" width="{width}" height="900" src="report.html"></iframe><pre id="out"></pre>
<script>
document.getElementById("f").onload = (event) => {{
  const page = event.target.contentDocument;
  const root = page.documentElement;
  const outside = [...page.querySelectorAll("main *")].filter((e) => {{
    const box = e.getBoundingClientRect();
    return !e.closest("thead") && (box.right > root.clientWidth + 0.5 || box.left < -0.5);
  }});
  document.getElementById("out").textContent = JSON.stringify({{
    width: root.clientWidth, scroll: root.scrollWidth, title: page.title,
    outside: outside.map((e) => e.tagName + "." + e.getAttribute("class")).slice(0, 5),
    scripts: page.scripts.length,
    background: page.defaultView.getComputedStyle(page.body).backgroundColor,
  }});
}};
</script>"""


def browse(directory: Path, width: int, *flags: str) -> tuple[dict[str, object], str]:
    """What the frame found out, and everything the browser logged about pages."""
    import json

    (directory / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--allow-file-access-from-files",
            "--enable-logging=stderr",
            f"--user-data-dir={directory / 'profile'}",
            "--window-size=1280,1000",
            "--virtual-time-budget=3000",
            *flags,
            "--dump-dom",
            (directory / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<pre id="out">(\{.*?\})</pre>', done.stdout, re.S)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(html.unescape(found[1])), "\n".join(console)


@pytest.mark.parametrize(
    ("make", "width"),
    [(samples.failing, 400), (samples.hostile, 400), (samples.language_model, 1200)],
)
def test_fits_without_sideways_scroll(make: object, width: int, tmp_path: Path) -> None:
    report = make()  # type: ignore[operator]
    (tmp_path / "report.html").write_text(to_html(report), encoding="utf-8")
    found, console = browse(tmp_path, width)
    assert console == ""
    assert found["scripts"] == 0
    assert found["scroll"] == found["width"]
    assert found["outside"] == []
    assert abs(int(str(found["width"])) - width) <= 20  # minus a scroll bar


def test_follows_the_reader_s_colour_scheme(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(to_html(samples.passing()), encoding="utf-8")
    light, _ = browse(tmp_path, 800, "--blink-settings=preferredColorScheme=1")
    dark, _ = browse(tmp_path, 800, "--blink-settings=preferredColorScheme=0")
    assert light["background"] == "rgb(255, 255, 255)"
    assert dark["background"] == "rgb(16, 18, 23)"

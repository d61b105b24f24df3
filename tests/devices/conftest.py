"""Tests of devices use what was really installed, in the user's cache; others do not."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def _real_store() -> Iterator[None]:
    hidden = os.environ.pop("EXPORTER_DEVICES", None)
    yield
    if hidden is not None:
        os.environ["EXPORTER_DEVICES"] = hidden

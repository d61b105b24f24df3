"""Tests of devices use what was really installed, in the user's cache; others do not."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from exporter.devices.device import Job
from tests.devices.ending import endless_job


@pytest.fixture(scope="package", autouse=True)
def _real_store() -> Iterator[None]:
    hidden = os.environ.pop("EXPORTER_DEVICES", None)
    yield
    if hidden is not None:
        os.environ["EXPORTER_DEVICES"] = hidden


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job that works until it is stopped."""
    return endless_job(tmp_path_factory.mktemp("endless"))

"""The bill of materials: of the official schema, complete, and the same each time."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement

from exporter.ship.sbom import installed_closure, make_sbom, sbom_hashes

MODEL = {"name": "bert", "kind": "checkpoint", "sha256": "a" * 64}
DATA = {"location": "/home/me/reviews.jsonl", "sha256": "b" * 64}


def _bill(directory: Path, **changes: object) -> str:
    (directory / "model").mkdir(exist_ok=True)
    (directory / "model" / "model.onnx").write_bytes(b"weights")
    facts = {"title": "bert-mobile", "version": "1.0", "model": MODEL, "data": DATA} | changes
    return make_sbom(directory, **facts)  # type: ignore[arg-type]


def test_it_is_valid_and_names_everything(tmp_path: Path) -> None:
    text = _bill(tmp_path)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    by_ref = {c["bom-ref"]: c for c in bill["components"]}
    assert by_ref["source-model"]["type"] == "machine-learning-model"
    assert by_ref["data"]["type"] == "data"
    assert by_ref["data"]["name"] == "reviews.jsonl"
    assert "/home/me" not in text
    torch = next(c for c in bill["components"] if c["name"] == "torch")
    assert torch["version"] == importlib.metadata.version("torch")
    purl = PackageURL.from_string(torch["purl"])
    assert (purl.type, purl.name, purl.version) == ("pypi", "torch", torch["version"])
    assert torch["licenses"]
    assert by_ref["python"]["version"].startswith("3.")
    assert sbom_hashes(text) == {
        "source-model": "a" * 64,
        "data": "b" * 64,
        "file:model/model.onnx": hashlib.sha256(b"weights").hexdigest(),
    }
    edges = {d["ref"]: set(d.get("dependsOn", ())) for d in bill["dependencies"]}
    assert {"source-model", "data", "exporter", "file:model/model.onnx"} == edges["artifact"]
    assert torch["bom-ref"] in edges["exporter"]
    assert "python" in edges["exporter"]


def test_equal_inputs_give_equal_bytes_and_others_another_number(tmp_path: Path) -> None:
    one = _bill(tmp_path)
    assert _bill(tmp_path) == one
    assert "timestamp" not in one
    number = json.loads(one)["serialNumber"]
    assert number.startswith("urn:uuid:")
    other = _bill(tmp_path, data=DATA | {"sha256": "c" * 64})
    assert json.loads(other)["serialNumber"] != number


def test_the_closure_is_closed_and_holds_what_is_needed_indirectly() -> None:
    closure = installed_closure()
    assert {"torch", "onnxruntime", "numpy", "huggingface-hub", "jinja2", "markupsafe"} <= set(
        closure
    )
    assert "pytest" not in closure  # installed, and no part of what produced the artifact
    assert "markupsafe" in closure["jinja2"]
    for name, needed in closure.items():
        assert set(needed) <= set(closure), name
    # what another platform needs is not here
    for text in importlib.metadata.requires("torch") or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            assert requirement.name not in closure["torch"]


def test_what_an_extra_needs_is_followed_also_when_asked_for_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs = {
        "exporter": ["Served[fast]>=1", "plain", 'linter; extra == "dev"'],
        "served": ['engine; extra == "fast"', 'gpu; extra == "cuda"', "base"],
        "plain": ["served[cuda]", 'unused; extra == "more"'],
        **{name: [] for name in ("engine", "gpu", "base", "linter", "unused")},
    }
    monkeypatch.setattr("exporter.ship.sbom.LIBRARIES", ())
    monkeypatch.setattr("importlib.metadata.requires", needs.__getitem__)
    assert installed_closure() == {
        "base": (),
        "engine": (),
        "exporter": ("plain", "served"),
        "gpu": (),
        "plain": ("served",),
        "served": ("base", "engine", "gpu"),
    }


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"components": [1]}', '{"components": [{"hashes": [{}]}]}']
)
def test_what_is_no_bill_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"bill|JSON|Expecting"):
        sbom_hashes(text)

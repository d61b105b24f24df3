"""sbom.cdx.json: a CycloneDX 1.6 bill of what ships and of everything that produced it.

https://cyclonedx.org/docs/1.6/json/. It holds neither the time nor anything random: equal inputs
in an equal environment give equal bytes.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifact import strict_json
from exporter.cache import LIBRARIES, sha256_file

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

SBOM = "sbom.cdx.json"
TOOL = "exporter"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:exporter:sbom")

Closure = dict[str, tuple[str, ...]]


def make_sbom(
    directory: Path, *, title: str, version: str, model: Mapping[str, Any], data: Mapping[str, Any]
) -> str:
    """The bill of an artifact whose `model/` is written, as JSON text.

    Args:
        title: name of the artifact.
        version: of this tool.
        model: `name`, `kind` and `sha256` of the source.
        data: `location` and `sha256`.
    """
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    files = [
        Component(
            type=ComponentType.FILE,
            name=path.relative_to(directory).as_posix(),
            bom_ref=f"file:{path.relative_to(directory).as_posix()}",
            hashes=[_sha256(sha256_file(path))],
        )
        for path in sorted((directory / "model").rglob("*"))
        if path.is_file()
    ]
    source = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=str(model["name"]),
        bom_ref="source-model",
        description=f"source model ({model['kind']}); the hash is over weights, configuration "
        "and preprocessor files",
        hashes=[_sha256(str(model["sha256"]))],
    )
    examples = Component(
        type=ComponentType.DATA,
        name=Path(str(data["location"])).name,
        bom_ref="data",
        description="examples; the hash is over the content of all four splits",
        hashes=[_sha256(str(data["sha256"]))],
    )
    python = Component(
        type=ComponentType.PLATFORM,
        name=platform.python_implementation(),
        version=platform.python_version(),
        bom_ref="python",
        purl=PackageURL("generic", name="python", version=platform.python_version()),
    )
    closure = installed_closure()
    libraries = {name: _library(name) for name in closure if name != TOOL}
    tool = Component(type=ComponentType.APPLICATION, name=TOOL, version=version, bom_ref=TOOL)

    root = Component(type=ComponentType.MACHINE_LEARNING_MODEL, name=title, bom_ref="artifact")
    bom = Bom(components=[*files, source, examples, python, tool, *libraries.values()])
    bom.metadata.component = root
    bom.metadata.timestamp = None  # type: ignore[assignment]  # equal runs give equal bytes
    bom.register_dependency(root, [*files, source, examples, tool])
    bom.register_dependency(tool, [python, *(libraries[n] for n in closure[TOOL])])
    for name, component in libraries.items():
        bom.register_dependency(component, [libraries[n] for n in closure[name]])
    content = "\n".join(_line(component) for component in bom.components)
    bom.serial_number = uuid.uuid5(_NAMESPACE, f"{title}\n{content}")
    text = JsonV1Dot6(bom).output_as_string()
    return json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def sbom_hashes(text: str) -> dict[str, str]:
    """bom-ref -> SHA-256 of everything in a bill that has one.

    Raises:
        ValueError: the text is no such bill, or says something twice.
    """
    return _distinct(
        (str(component["bom-ref"]), str(entry["content"]))
        for component in _components(text)
        for entry in component.get("hashes", ())
        if entry["alg"] == "SHA-256"
    )


def sbom_libraries(text: str) -> dict[str, str]:
    """Name -> version of every library in a bill.

    Raises:
        ValueError: the text is no such bill, or says something twice.
    """
    return _distinct(
        (str(component["name"]), str(component["version"]))
        for component in _components(text)
        if component["type"] == "library"
    )


def _components(text: str) -> list[dict[str, Any]]:
    try:
        components: list[dict[str, Any]] = strict_json(text)["components"]
        _distinct((str(component["bom-ref"]), "") for component in components)
        return components
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a CycloneDX bill: {error}") from error


def _distinct(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        for name, value in pairs:
            if name in found:
                raise ValueError(f"the bill lists {name} twice")
            found[name] = value
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not a CycloneDX bill: {error}") from error
    return found


def installed_closure() -> Closure:
    """Every installed distribution that this package needs -> those that it needs itself.

    Names are normalized. What is required and not installed (for other platforms, or optional) is
    left out. The libraries that compute results count even where this package runs uninstalled.
    """
    try:
        own = importlib.metadata.requires(TOOL) or []
    except importlib.metadata.PackageNotFoundError:
        own = []
    extras: dict[str, set[str]] = {}
    needs: dict[str, set[str]] = {}
    left = [(TOOL, [*own, *LIBRARIES], frozenset({""}))]
    while left:
        name, requirements, wanted = left.pop()
        needs.setdefault(name, set())
        for requirement, with_extras in _needed(requirements, wanted):
            asked = with_extras | {""}
            try:
                further = importlib.metadata.requires(requirement) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            if requirement != TOOL:
                needs[name].add(requirement)
            known = extras.setdefault(requirement, set())
            if not asked <= known:
                known |= asked
                left.append((requirement, further, frozenset(known)))
    return {name: tuple(sorted(needs[name])) for name in sorted(needs)}


def _needed(requirements: Iterable[str], extras: frozenset[str]) -> list[tuple[str, set[str]]]:
    """Names and extras of those requirements that hold here for any of `extras`."""
    from packaging.requirements import Requirement

    found = []
    for text in requirements:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            found.append((_normalized(requirement.name), set(requirement.extras)))
    return found


def _library(name: str) -> Component:
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    version = importlib.metadata.version(name)
    purl = PackageURL("pypi", name=name, version=version)
    make = LicenseFactory()
    return Component(
        type=ComponentType.LIBRARY,
        name=name,
        version=version,
        bom_ref=purl.to_string(),
        purl=purl,
        licenses=[make.make_from_string(text) for text in _licenses(name)],
    )


def _licenses(name: str) -> list[str]:
    """An SPDX expression where the metadata has one, else what it says in words."""
    metadata = importlib.metadata.metadata(name).json
    expression = metadata.get("license_expression")
    if expression:
        return [str(expression)]
    words = str(metadata.get("license") or "").strip()
    if words and "\n" not in words and len(words) <= 64 and words.upper() != "UNKNOWN":
        return [words]
    classifiers = metadata.get("classifier") or []
    names = {c.split(" :: ")[-1] for c in classifiers if c.startswith("License :: ")}
    return sorted(names - {"OSI Approved"})


def _normalized(name: str) -> str:
    """A distribution's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _sha256(digest: str) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType

    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def _line(component: Component) -> str:
    hashes = ",".join(str(h.content) for h in component.hashes)
    return f"{component.bom_ref.value} {component.version or ''} {hashes}"

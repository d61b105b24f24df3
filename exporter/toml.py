"""TOML in, validated models out, with errors that name the place, the rule and the remedy."""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from exporter.errors import ProfileError

MAX_BYTES = 1 << 20  # a profile is a page of text; anything larger is not one

Model = TypeVar("Model", bound=BaseModel)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ProfileError: missing, unreadable, too large, or not TOML.
    """
    place = str(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ProfileError(
                place, "must be at most 1 MiB", remedy="a profile is a page of text."
            )
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise ProfileError(place, "does not exist", remedy="check the path.") from error
    except OSError as error:
        raise ProfileError(
            place, "must be readable", got=error.strerror, remedy="check the path and its rights."
        ) from error
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ProfileError(place, "must be UTF-8 text", remedy="save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(place, "must be valid TOML", got=str(error), remedy="fix it.") from error


def validated(
    model: type[Model], data: dict[str, Any], *, place: str, keys: str = "exporter targets --schema"
) -> Model:
    """`data` as `model`; `keys` is the command that lists what may be given.

    Raises:
        ProfileError: naming the first key that breaks a rule, and how many more do.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _explained(model, error, place, keys) from error


def _explained(
    model: type[BaseModel], error: ValidationError, place: str, keys: str
) -> ProfileError:
    # a misspelt key also leaves its right name missing: say the cause, not the effect
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    location = first["loc"]
    where = ".".join(str(part) for part in location)
    more = "" if len(problems) == 1 else f" ({len(problems) - 1} more after this one)"
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}."
        return ProfileError(place, f"unknown key '{where}'", remedy=hint + more)
    if first["type"] == "missing":
        return ProfileError(place, f"'{where}' is missing", remedy=f"add it{more}.")
    rule = first["msg"].removeprefix("Value error, ")
    got = first["input"]
    shown = None if isinstance(got, dict) else repr(got)
    return ProfileError(
        place,
        f"{where}: {rule[0].lower()}{rule[1:]}" if where else rule,
        got=shown,
        remedy=f"see `{keys}` for every key{more}.",
    )


def _known_keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys allowed at `path`, walking through nested models, lists and optionals."""
    current: Any = model
    for part in path:
        if isinstance(part, int):
            continue
        annotation = current.model_fields[part].annotation
        current = next((m for m in _models_in(annotation)), None)
        if current is None:
            return []
    return sorted(current.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for argument in getattr(annotation, "__args__", ()):
        found += _models_in(argument)
    return found


def to_toml(table: dict[str, Any]) -> str:
    """A nested mapping as TOML text; lists of mappings become arrays of tables."""
    return "".join(_toml_lines(table, ())).lstrip("\n")


def _toml_lines(table: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {k: v for k, v in table.items() if not _is_table(v)}
    lines = [f"{key} = {_toml_value(value)}\n" for key, value in plain.items()]
    for key, value in table.items():
        name = ".".join((*path, key))
        if isinstance(value, dict):
            lines += [f"\n[{name}]\n", *_toml_lines(value, (*path, key))]
        elif _is_table(value):
            for item in value:
                lines += [f"\n[[{name}]]\n", *_toml_lines(item, (*path, key))]
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)
    )


def _toml_value(value: Any) -> str:
    # JSON's strings, numbers, booleans and flat lists are TOML's as well.
    return json.dumps(value, ensure_ascii=False)

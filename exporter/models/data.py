"""Rows from wherever the user keeps data: files, folders of files or images, a function."""

from __future__ import annotations

import difflib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exporter.errors import DataError
from exporter.models.imported import import_function, is_function_spec

Rows = dict[str | None, list[dict[str, Any]]]

# Role -> names under which data may hold it: of files, folders or splits.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "calibration": ("calibration", "calib"),
    "development": ("development", "dev", "validation", "valid", "val", "eval"),
    "test": ("test", "testing"),
}
_FORMATS = (".jsonl", ".json", ".csv", ".parquet")
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


class NamedLabel(int):
    """A class index of a `datasets` ClassLabel column that still knows the class's name."""

    name: str

    def __new__(cls, index: int, name: str) -> NamedLabel:
        label = super().__new__(cls, index)
        label.name = name
        return label


def read_rows(data: str) -> Rows:
    """All rows by role (`train`, `calibration`, `development`, `test`), or under None undivided.

    Args:
        data: a JSONL, JSON, CSV or Parquet file; a directory of such files named after splits;
            what `datasets` saved with save_to_disk; a folder of class folders of images (with
            split folders above them or not); or `package.module:function`.

    Images stay encoded (a path, or bytes), they are decoded when they are used.

    Raises:
        DataError: missing, empty, malformed (the line is named), or of no known layout.
    """
    path = Path(data).expanduser()
    if not path.exists():
        found = _called(data) if is_function_spec(data) else _missing(path, data)
    elif path.is_file():
        found = {None: _file(path)}
    elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        found = _saved(path)
    else:
        found = _directory(path)
    for role, rows in found.items():
        if not rows:
            place = data if role is None else f"{data}: {role}"
            raise DataError(place, "must hold examples", got="none", remedy="give data with rows.")
    if not found:
        raise DataError(data, "must hold examples", got="none", remedy="give data with rows.")
    return found


def _missing(path: Path, data: str) -> Rows:
    around = path.parent if path.parent.is_dir() else Path()
    names = [p.name for p in around.iterdir()]
    close = [str(around / n) for n in difflib.get_close_matches(path.name, names, n=2, cutoff=0.65)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise DataError(data, "no such file or directory", remedy=f"{hint}check --data.")


def role_of(name: str) -> str | None:
    """The role that a file, folder or split is named after (`dev-00000-of-00002` → development)."""
    for role, names in SPLIT_NAMES.items():
        for known in names:
            rest = name.lower().removeprefix(known)
            if rest != name.lower() and (not rest or rest[0] in "-_."):
                return role
    return None


def _by_role(place: str, splits: Iterable[tuple[str, list[dict[str, Any]]]]) -> Rows:
    """Rows under their roles; a name that is no split's is refused."""
    found: Rows = {}
    for name, rows in splits:
        role = role_of(name)
        if role is None:
            raise DataError(
                place,
                f"splits must be called one of {', '.join(SPLIT_NAMES)} (or validation)",
                got=name,
                remedy="rename or remove that split.",
            )
        found.setdefault(role, []).extend(rows)
    return found


def _called(spec: str) -> Rows:
    returned = import_function(spec, DataError)()
    if isinstance(returned, Mapping):
        return _by_role(spec, ((str(n), _mappings(spec, rows)) for n, rows in returned.items()))
    return {None: _mappings(spec, returned)}


def _mappings(spec: str, rows: Any) -> list[dict[str, Any]]:
    if not isinstance(rows, Iterable) or isinstance(rows, str | bytes):
        raise _no_rows(spec, rows)
    found = []
    for row in rows:
        if not isinstance(row, Mapping):
            raise _no_rows(spec, row)
        found.append(dict(row))
    return found


def _no_rows(spec: str, got: Any) -> DataError:
    return DataError(
        spec,
        "must return rows (mappings), or a mapping of split names to rows",
        got=type(got).__name__,
        remedy="yield one dict an example.",
    )


def _saved(path: Path) -> Rows:
    import datasets

    try:
        with _quiet():
            loaded = datasets.load_from_disk(str(path), keep_in_memory=True)
    except Exception as error:  # datasets and pyarrow raise many unrelated kinds
        raise _malformed(path, error) from error
    if isinstance(loaded, datasets.DatasetDict):
        return _by_role(str(path), ((str(n), _rows(d)) for n, d in loaded.items()))
    return {None: _rows(loaded)}


def _directory(path: Path) -> Rows:
    """Files named after splits, one file, or folders of images."""
    files = sorted(
        p for d in (path, path / "data") if d.is_dir() for p in d.iterdir() if p.suffix in _FORMATS
    )
    named = [p for p in files if role_of(p.name)]
    if named:
        return _by_role(str(path), ((p.name, _file(p)) for p in named))
    if len(files) == 1:
        return {None: _file(files[0])}
    if files:
        raise DataError(
            str(path),
            "files must be named after splits, such as train.jsonl and test.jsonl",
            got=", ".join(p.name for p in files[:5]),
            remedy="rename them, or give one file.",
        )
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if any(role_of(f.name) and any(p.is_dir() for p in f.iterdir()) for f in folders):
        return _by_role(str(path), ((f.name, _images(f)) for f in folders))
    rows = _images(path)
    if not rows:
        raise DataError(
            str(path),
            "must hold data files, a saved dataset, or one folder of images a class",
            remedy=f"known formats: {', '.join(f[1:] for f in _FORMATS)}, images.",
        )
    return {None: rows}


def _images(folder: Path) -> list[dict[str, Any]]:
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return [
        {"image": str(path), "label": kind.name}
        for kind in classes
        for path in sorted(kind.rglob("*"))
        if path.suffix.lower() in _IMAGES
    ]


def _file(path: Path) -> list[dict[str, Any]]:
    if path.suffix not in _FORMATS:
        raise DataError(
            str(path),
            f"must be one of {', '.join(f[1:] for f in _FORMATS)}",
            got=path.suffix or "no suffix",
            remedy="convert it.",
        )
    if path.stat().st_size == 0:
        raise DataError(str(path), "must hold examples", got="0 bytes", remedy="write rows to it.")
    import datasets

    read: Callable[..., Any] = {
        ".csv": datasets.Dataset.from_csv,
        ".parquet": datasets.Dataset.from_parquet,
    }.get(path.suffix, datasets.Dataset.from_json)
    # Otherwise the text "NA" or "null" would be read as missing.
    options = {"keep_default_na": False} if path.suffix == ".csv" else {}
    try:
        with _quiet(), tempfile.TemporaryDirectory() as scratch:
            loaded = read(str(path), keep_in_memory=True, cache_dir=scratch, **options)
    except Exception as error:  # datasets wraps pandas', pyarrow's and json's own kinds
        if "corresponds to no data" in str(error):
            return []
        raise _malformed(path, error) from error
    return _rows(loaded)


def _rows(dataset: Any) -> list[dict[str, Any]]:
    """Plain rows; images stay encoded, class indices keep their names."""
    import datasets

    names: dict[str, Any] = {}
    for column, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
        if isinstance(feature, datasets.ClassLabel):
            names[column] = feature
    rows: list[dict[str, Any]] = dataset.to_list()
    for column, feature in names.items():
        for row in rows:
            if row[column] is not None and row[column] >= 0:
                row[column] = NamedLabel(row[column], feature.int2str(row[column]))
    return rows


def _malformed(path: Path, error: Exception) -> DataError:
    """The line at fault where the format has lines, else what the reader said."""
    where = ""
    if path.suffix == ".jsonl":
        where, error = _bad_line(path) or ("", error)
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    kind = {".jsonl": "one JSON object a line", ".json": "JSON rows"}.get(
        path.suffix, "CSV" if path.suffix == ".csv" else "Parquet or a saved dataset"
    )
    got = " ".join(str(error).split())[:200]
    return DataError(
        f"{path}{where}",
        f"must be {kind}, with one type of value a column",
        got=got or type(error).__name__,
        remedy="correct or remove what is named here.",
    )


def _bad_line(path: Path) -> tuple[str, Exception] | None:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line) if line.strip() else {}
                if not isinstance(row, dict):
                    raise ValueError(f"a {type(row).__name__}, not an object")
            except (ValueError, RecursionError) as error:
                return f", line {number}", error
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep `datasets`' own progress bars out of our output."""
    import datasets

    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()

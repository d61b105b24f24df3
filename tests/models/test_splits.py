"""Data and splits: every layout reads alike, splits are disjoint, bad data is told."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.errors import DataError
from exporter.models.data import read_rows
from exporter.models.examples import Calibration, Development, Test, Train
from exporter.models.splits import Splits, make_splits
from exporter.models.tasks import get_task
from tests.tiny import LABELS, label_of, sentences

CLASSIFY = get_task("text-classification")
IMAGES = get_task("image-classification")
NAMES = {name: i for i, name in enumerate(LABELS)}
ROWS = [{"text": text, "label": label_of(text)} for text in sentences(300)]


def jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def split(data: Path | str, **options: Any) -> Splits:
    return make_splits(str(data), CLASSIFY, **{"label_names": NAMES, **options})


def refused(data: Path | str, task: Any = CLASSIFY, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        make_splits(str(data), task, **{"label_names": NAMES, **options})
    return str(caught.value)


def parts(splits: Splits) -> list[Any]:
    return [splits.train, splits.calibration, splits.development, splits.test]


def as_csv(directory: Path) -> Path:
    path = directory / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def as_parquet(directory: Path) -> Path:
    import datasets

    datasets.Dataset.from_list(ROWS).to_parquet(str(directory / "rows.parquet"))
    return directory / "rows.parquet"


def as_saved(directory: Path) -> Path:
    import datasets

    features = datasets.Features(
        # Other order than the model's: only the names can put it right.
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(LABELS)[::-1])}
    )
    made = datasets.Dataset.from_list(ROWS, features=features)
    made.save_to_disk(str(directory / "saved"))
    return directory / "saved"


def as_function(directory: Path) -> str:
    jsonl(directory / "function_rows.jsonl", ROWS)
    (directory / "user_rows.py").write_text(
        "import json, pathlib\n"
        f"PATH = pathlib.Path({str(directory / 'function_rows.jsonl')!r})\n"
        "def rows():\n    yield from map(json.loads, PATH.read_text().splitlines())\n"
        "def parts():\n    r = list(rows())\n    return {'train': r[:200], 'validation': r[200:]}\n"
        "def nothing():\n    return 3\n"
    )
    return "user_rows:rows"


@pytest.mark.parametrize("layout", [as_csv, as_parquet, as_saved, as_function])
def test_layouts_read_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Callable[[Path], Path | str]
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = split(jsonl(tmp_path / "plain" / "rows.jsonl", ROWS))
    got = split(layout(tmp_path))
    assert got.data_hash == expected.data_hash
    assert got.test.rows == expected.test.rows


def test_undivided_data_is_carved_by_content_not_by_order(tmp_path: Path) -> None:
    first = split(jsonl(tmp_path / "a.jsonl", ROWS))
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    second = split(jsonl(tmp_path / "b.jsonl", [*shuffled, *shuffled[:50]]))
    assert first == second
    assert [len(p) for p in parts(first)] == [210, 15, 30, 45]
    assert [p.role for p in parts(first)] == [Train, Calibration, Development, Test]
    other = split(tmp_path / "a.jsonl", seed=1)
    assert set(other.test.ids) != set(first.test.ids)
    assert other.data_hash != first.data_hash


def test_splits_are_disjoint_and_test_keeps_what_they_share(tmp_path: Path) -> None:
    data = tmp_path / "data"
    jsonl(data / "train.jsonl", ROWS[:220])
    jsonl(data / "dev.jsonl", ROWS[180:260])
    jsonl(data / "test.jsonl", ROWS[240:])
    splits = split(data)
    ids = [set(p.ids) for p in parts(splits)]
    assert sum(map(len, ids)) == len(set().union(*ids)) == 300
    texts = {row["text"] for row in splits.test.rows}
    assert texts == {row["text"] for row in ROWS[240:]}
    development = {row["text"] for row in splits.development.rows}
    assert development == {row["text"] for row in ROWS[180:240]}


def test_equal_texts_with_other_labels_never_cross(tmp_path: Path) -> None:
    again = [{**row, "label": "other"} for row in ROWS[:100]]
    splits = split(jsonl(tmp_path / "rows.jsonl", ROWS + again))
    texts = [row["text"] for p in parts(splits) for row in p.rows]
    assert len(texts) == len(set(texts)) == 300


def test_rows_in_no_split_are_counted_by_reason(tmp_path: Path) -> None:
    assert split(jsonl(tmp_path / "all.jsonl", ROWS)).left_out_text() == ""
    other = next(row["label"] for row in ROWS if row["label"] != ROWS[0]["label"])
    empty = [{"text": text, "label": other} for text in ("", "", "")]
    rows = [*ROWS, *ROWS[:5], {**ROWS[0], "label": other}, *empty]
    splits = split(jsonl(tmp_path / "rows.jsonl", rows))
    assert sum(map(len, parts(splits))) == len(ROWS) + 1
    assert sum(splits.left_out.values()) == 8
    assert splits.left_out_text().startswith("8 rows left out: 2 empty, ")
    assert "equal to another that has a different label" in splits.left_out_text()


def test_train_and_test_alone_get_development_and_calibration(tmp_path: Path) -> None:
    data = tmp_path / "data"
    jsonl(data / "train.jsonl", ROWS[:240])
    jsonl(data / "test.jsonl", ROWS[240:])
    splits = split(data, calibration_examples=9)
    assert [len(p) for p in parts(splits)] == [207, 9, 24, 60]


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    rows = [{"sentence": r["text"], "category": r["label"], "words": r["text"]} for r in ROWS]
    data = jsonl(tmp_path / "rows.jsonl", rows)
    assert set(split(data).test.rows[0]) == {"text", "label"}
    assert split(data, columns={"text": "words"}).data_hash == split(data).data_hash
    odd = jsonl(tmp_path / "odd.jsonl", [{"a": r["text"], "label": r["label"]} for r in ROWS])
    message = refused(odd)
    assert "must have a column for text, got a, label" in message
    assert "--column text=NAME" in message
    wrong = refused(data, columns={"text": "sentnce"})
    assert "--column text=sentnce: the data has no column sentnce" in wrong
    assert "did you mean sentence?" in wrong
    assert "got a, label; name one" in refused(odd, columns={"text": "zzz"})
    assert "knows only" in refused(odd, columns={"txt": "a"})


def test_csv_keeps_words_that_look_missing(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\nNA,1\nnull,0\n")
    assert [row["text"] for row in read_rows(str(tmp_path / "rows.csv"))[None]] == ["NA", "null"]


def test_malformed_lines_are_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", ROWS[:3])
    path.write_text(path.read_text() + '{"text": "a", \n')
    assert "rows.jsonl, line 4" in refused(path)
    jsonl(path, [*ROWS[:2], [1]])
    assert "line 3" in refused(path)
    (tmp_path / "rows.csv").write_text("text,label\na,1\nb,0,5,6\n")
    assert "line 3" in refused(tmp_path / "rows.csv")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 not really")
    assert "must be Parquet" in refused(tmp_path / "rows.parquet")


def test_missing_empty_and_unknown_data(tmp_path: Path) -> None:
    jsonl(tmp_path / "rows.jsonl", [])
    assert "must hold examples" in refused(tmp_path / "rows.jsonl")
    assert "did you mean" in refused(tmp_path / "row.jsonl")
    (tmp_path / "other.pem").write_text("")
    assert "did you mean" not in refused(tmp_path / "nothere.csv")
    (tmp_path / "rows.csv").write_text("text,label\n")
    assert "must hold examples" in refused(tmp_path / "rows.csv")
    import datasets

    none = datasets.Dataset.from_dict({"text": [], "label": []})
    none.to_parquet(str(tmp_path / "rows.parquet"))
    assert "must hold examples" in refused(tmp_path / "rows.parquet")
    (tmp_path / "rows.txt").write_text("hello")
    assert "must be one of jsonl" in refused(tmp_path / "rows.txt")
    (tmp_path / "empty").mkdir()
    assert "must hold data files" in refused(tmp_path / "empty")
    jsonl(tmp_path / "odd" / "a.jsonl", ROWS)
    jsonl(tmp_path / "odd" / "b.jsonl", ROWS)
    assert "named after splits" in refused(tmp_path / "odd")


def test_functions_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    as_function(tmp_path)
    assert {k: len(v) for k, v in read_rows("user_rows:parts").items()} == {
        "train": 200,
        "development": 100,
    }
    assert "must return rows" in refused("user_rows:nothing")
    assert "must define" in refused("user_rows:absent")


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["animal", "plant"], "got plant"),
        ([0, 7], "got 7"),
        (["animal", None], "every example must have a label"),
        ([-1, 0], "every example must have a label"),
        (["animal", "animal"], "must hold at least two classes"),
    ],
)
def test_labels_that_do_not_match(tmp_path: Path, labels: list[Any], told: str) -> None:
    rows = [{"text": r["text"], "label": labels[i % 2]} for i, r in enumerate(ROWS)]
    assert told in refused(jsonl(tmp_path / "rows.jsonl", rows))


def test_generic_class_names_ask_for_real_ones(tmp_path: Path) -> None:
    message = refused(
        jsonl(tmp_path / "rows.jsonl", ROWS), label_names={"LABEL_0": 0, "LABEL_1": 1}
    )
    assert "set id2label" in message


def test_labels_by_index_digits_and_case(tmp_path: Path) -> None:
    expected = split(jsonl(tmp_path / "a.jsonl", ROWS)).data_hash
    for i, change in enumerate((NAMES.get, lambda n: str(NAMES[n]), str.upper)):
        rows = [{"text": r["text"], "label": change(r["label"])} for r in ROWS]
        assert split(jsonl(tmp_path / f"{i}.jsonl", rows)).data_hash == expected


def test_one_class_in_the_test_split(tmp_path: Path) -> None:
    data = tmp_path / "data"
    animals = [r for r in ROWS if r["label"] == "animal"]
    jsonl(data / "train.jsonl", [r for r in ROWS if r["label"] != "animal"] + animals[25:])
    jsonl(data / "test.jsonl", animals[:25])
    assert "test: must hold at least two classes" in refused(data)


def test_too_few_examples(tmp_path: Path) -> None:
    few = refused(jsonl(tmp_path / "rows.jsonl", ROWS[:63]))
    assert "must hold at least 64 different examples" in few
    assert "got 63" in few
    split(jsonl(tmp_path / "rows.jsonl", ROWS[:64]))
    assert "at least 64" in refused(jsonl(tmp_path / "rows.jsonl", ROWS[:30] * 10))
    data = tmp_path / "data"
    jsonl(data / "train.jsonl", ROWS[:200])
    jsonl(data / "test.jsonl", ROWS[200:219])
    assert "test: must hold at least 20 different examples, got 19" in refused(data)
    (data / "train.jsonl").rename(data / "dev.jsonl")
    assert "must have a train split" in refused(data)


def picture(path: Path, seed: int, size: tuple[int, int] = (8, 8)) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_image_folder_and_equal_pixels(tmp_path: Path) -> None:
    for i in range(90):
        picture(tmp_path / "flat" / LABELS[i % 3] / f"{i}.png", i)
    # The same pixels in another format are the same example.
    picture(tmp_path / "flat" / LABELS[0] / "again.bmp", 0)
    splits = make_splits(str(tmp_path / "flat"), IMAGES, label_names=NAMES)
    assert sum(map(len, parts(splits))) == 90
    assert {row["label"] for row in splits.train.rows} == {0, 1, 2}
    for part, numbers in {"train": range(60), "test": range(60, 90)}.items():
        for i in numbers:
            picture(tmp_path / "divided" / part / LABELS[i % 3] / f"{i}.png", i)
    divided = make_splits(str(tmp_path / "divided"), IMAGES, label_names=NAMES)
    assert len(divided.test) == 30
    assert sum(map(len, parts(divided))) == 90


def test_images_that_differ_in_one_pixel_are_two_examples() -> None:
    white = np.full((9, 9, 3), 255, np.uint8)
    other = white.copy()
    other[-1, -1, -1] = 0
    assert IMAGES.row_id({"image": white}) != IMAGES.row_id({"image": other})
    assert IMAGES.row_id({"image": white}) != IMAGES.row_id({"image": white.reshape(3, 27, 3)})


def test_images_in_parquet(tmp_path: Path) -> None:
    import datasets
    from PIL import Image

    pictures = [Image.open(picture(tmp_path / f"{i}.png", i)).copy() for i in range(70)]
    table = {"image": pictures, "label": [i % 3 for i in range(70)]}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(LABELS))}
    )
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(tmp_path / "i.parquet"))
    splits = make_splits(str(tmp_path / "i.parquet"), IMAGES, label_names=NAMES)
    assert sum(map(len, parts(splits))) == 70
    assert isinstance(splits.test.rows[0]["image"]["bytes"], bytes)


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    for i in range(70):
        picture(tmp_path / "flat" / LABELS[i % 3] / f"{i}.png", i)
    bad = tmp_path / "flat" / LABELS[1] / "1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    assert str(bad) in refused(tmp_path / "flat", IMAGES)


def test_rows_that_already_are_feeds(tmp_path: Path) -> None:
    rows = [{"pixel_values": [[float(i), 1.0]], "label": i % 3} for i in range(70)]
    splits = make_splits(str(jsonl(tmp_path / "rows.jsonl", [*rows, rows[0]])), IMAGES)
    assert sum(map(len, parts(splits))) == 70
    feed = splits.test.rows[0]["pixel_values"]
    assert (feed.dtype, feed.shape) == (np.float32, (1, 2))

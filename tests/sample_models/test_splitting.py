import random

import numpy as np

from sample_models.splitting import deal, near_duplicates


def text(seed: int, length: int = 120) -> str:
    rng = random.Random(seed)
    return " ".join(f"word{rng.randrange(5000)}" for _ in range(length))


def test_an_edited_copy_joins_its_original_and_others_stay_alone() -> None:
    texts = [text(seed) for seed in range(40)]
    words = texts[7].split()
    words[50] = "changed"
    groups = near_duplicates([*texts, " ".join(words)], words=5)
    assert groups[-1] == 7
    np.testing.assert_array_equal(groups[:40], np.arange(40))


def test_texts_shorter_than_a_run_are_compared_too() -> None:
    groups = near_duplicates(["one two", "three", "one two", ""], words=5)
    assert groups.tolist() == [0, 1, 0, 3]


def test_groups_are_never_torn_and_counts_are_reached() -> None:
    keys = [f"file{i}" for i in range(60)]
    groups = [i - i % 3 for i in range(60)]
    split = deal(keys, groups, {"test": 10, "development": 7})
    for i in range(0, 60, 3):
        assert len(set(split[i : i + 3])) == 1
    assert 10 <= split.count("test") <= 12
    assert 7 <= split.count("development") <= 9
    assert split.count("train") == 60 - split.count("test") - split.count("development")


def test_sides_do_not_depend_on_the_order_of_the_items() -> None:
    keys = [f"file{i}" for i in range(50)]
    there = dict(zip(keys, deal(keys, range(50), {"test": 20}), strict=True))
    back = keys[::-1]
    assert dict(zip(back, deal(back, range(50), {"test": 20}), strict=True)) == there

"""Which flips are shown, in which order, and where a language model's differ."""

from __future__ import annotations

from typing import Any

import numpy as np

from exporter.flips import worth_reading
from exporter.models.examples import Examples, Split, Test
from exporter.models.scores import Scores


def _split(count: int) -> Split[Test]:
    rows = [{"text": f"row {i}"} for i in range(count)]
    return Split(Test, rows, tuple(map(str, range(count))))


def test_lost_answers_come_first_then_won_ones_then_wrong_both_times() -> None:
    label, before, after = np.zeros(8), np.zeros(8), np.zeros(8)
    before[:2], after[:2] = 1, 0  # won
    before[2:4], after[2:4] = 1, 2  # wrong both times
    before[4:6], after[4:6] = 0, 1  # lost
    nats = np.asarray([0.1, 0.9, 2.0, 3.0, 0.2, 0.3, 9.0, 9.0])  # the last two do not flip
    split = _split(8)
    reference, candidate = (
        Scores(
            "text-classification",
            split.ids,
            {
                "correct": (answer == label) * 1.0,
                "prediction": answer,
                "label": label,
                "kl": nats,
            },
        )
        for answer in (before, after)
    )
    meta = {"labels": ["no", "yes", "maybe"]}
    examples = Examples(Test, split.ids, (), (), None, {}, meta)
    found = worth_reading(reference, candidate, split, examples, None)
    assert [flip.text for flip in found] == [f"row {i}" for i in (5, 4, 1, 0, 3, 2)]
    lost, won, neither = found[0], found[2], found[4]
    assert (lost.expected, lost.reference, lost.candidate) == ("no", "no", "yes")
    assert (won.expected, won.reference, won.candidate) == ("no", "yes", "no")
    assert (neither.expected, neither.reference, neither.candidate) == ("no", "yes", "maybe")
    assert found[0].kl_nats == 0.3


class Words:
    """A tokenizer of one word a token."""

    def decode(self, tokens: Any) -> str:
        return " ".join(f"w{int(token)}" for token in tokens)


def test_the_quoted_tokens_are_those_of_the_window_that_surprises() -> None:
    split = _split(3)
    feeds = tuple({"input_ids": np.arange(6) + 10 * i} for i in range(4))
    examples = Examples(Test, split.ids, feeds, (0, 1, 1, 2), None, {})
    # the second document in its second window; the first in its only one; the third nowhere
    surprise = np.asarray([[0.5, 0, 3, 71, 72], [0.9, 2, 1, 81, 82], [-1.0] * 5])
    scores = Scores("text-generation", split.ids, {}, {"surprise": surprise})
    found = worth_reading(scores, scores, split, examples, Words())
    assert [(f.text, f.expected, f.reference, f.candidate, f.kl_nats) for f in found] == [
        ("…w20 w21", "w22", "w81", "w82", 0.9),
        ("…w0 w1 w2 w3", "w4", "w71", "w72", 0.5),
    ]
    assert worth_reading(scores, scores, split, examples, None) == ()

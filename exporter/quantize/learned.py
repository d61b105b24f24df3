"""Learned: static ranges that training found, at the values of a graph that they are for."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.compress.ranges import LearnedRange, weight_fingerprint
from exporter.quantize.calibrate import Range
from exporter.quantize.convolutions import Region
from exporter.quantize.linears import Linear


def learned_ranges(
    learned: Sequence[LearnedRange], linears: Sequence[Linear], region: Region
) -> dict[str, Range]:
    """Ranges by name of the value: the input of each layer that a range was trained for.

    Linear layers are known by their numbers, convolutions (whose numbers take up a batch norm's)
    by their name. Where several say something about a value, all of it counts.
    """
    if not learned:
        return {}
    by_weight: dict[str, Range] = {}
    for told in learned:
        by_weight[told.weight] = _joined(by_weight.get(told.weight), Range(told.low, told.high))
    by_name = {told.name: Range(told.low, told.high) for told in learned}
    found: dict[str, Range] = {}
    for linear in linears:
        span = by_weight.get(weight_fingerprint(linear.weight.array()))
        if span is not None:
            found[linear.x.name] = _joined(found.get(linear.x.name), span)
    for convolution in region.convolutions:
        span = by_name.get(convolution.inputs[1].name)
        if span is not None:
            value = region.range_source(convolution.inputs[0]).name
            found[value] = _joined(found.get(value), span)
    return found


def _joined(one: Range | None, other: Range) -> Range:
    return other if one is None else Range(min(one.low, other.low), max(one.high, other.high))

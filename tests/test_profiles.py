"""Profiles and recipes: what is accepted, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.errors import ProfileError
from exporter.recipe import load_recipe
from exporter.target import Target, load_target, target_names
from exporter.toml import to_toml

MINIMAL = """
name = "board"
description = "a board"
isa = "arm64"
memory_mib = 256
[budgets]
latency_ratio = 0.5
[[recipe.candidates]]
name = "int8"
quantization = "dynamic-int8"
"""


def _load(tmp_path: Path, text: str) -> Target:
    file = tmp_path / "board.toml"
    file.write_text(text, encoding="utf-8")
    return load_target(file)


def test_shipped_profiles_load_and_say_what_they_demand() -> None:
    assert target_names() == ["cloud-cpu", "edge", "mobile"]
    for name in target_names():
        target = load_target(name)
        assert target.name == name
        for task in ("text-generation", "text-classification", "image-classification"):
            metrics = {b.kind.metric for b in target.budgets.for_task(task)}
            assert {"latency_ratio", "disk_size_ratio", "peak_memory_mib"} <= metrics
            assert metrics & {"accuracy_drop_points", "perplexity_ratio"}
            assert target.recipe.for_task(task)
        # peak memory must leave room within what the device has
        assert (target.budgets.peak_memory_mib or 0) < target.memory_mib


def test_a_resolved_profile_reads_back_as_itself(tmp_path: Path) -> None:
    for name in target_names():
        target = load_target(name)
        text = to_toml(target.model_dump(mode="json", exclude_none=True))
        assert _load(tmp_path, text) == target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("memory_mib", "memory_mb"), r"unknown key 'memory_mb'; did you mean 'memory_mib'\?"),
        (('isa = "arm64"', 'isa = "mips"'), r"isa: .*'arm64' or 'x86-64'.*got 'mips'"),
        (("memory_mib = 256", ""), "'memory_mib' is missing; add it"),
        (("latency_ratio = 0.5", "latency_ratio = nan"), r"budgets\.latency_ratio"),
        (("latency_ratio = 0.5", "latency_ratio = 1.5"), r"budgets\.latency_ratio.*got 1\.5"),
        (("latency_ratio = 0.5", ""), "no budget is set"),
        (('"dynamic-int8"', '"int3"'), r"candidates\.0\.quantization: unknown scheme 'int3'"),
        (('name = "int8"', 'name = "Int 8"'), r"candidates\.0\.name"),
        (
            ('quantization = "dynamic-int8"', "pruning = { ffn = 0.0 }"),
            "removes nothing; set ffn, heads, layers, hidden, channels or sparsity above 0",
        ),
        (
            ('quantization = "dynamic-int8"', "pruning = { ffn = 1.0 }"),
            r"pruning\.ffn.*got 1\.0",
        ),
        (("[budgets]", 'features = ["avx2"]\n[budgets]'), "feature 'avx2' is not one of arm64's"),
        (("[budgets]", "[budgets"), "must be valid TOML"),
        (('name = "board"', 'name = "board" junk'), "must be valid TOML"),
    ],
)
def test_a_broken_profile_is_refused_by_place_and_rule(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    with pytest.raises(ProfileError, match=message) as caught:
        _load(tmp_path, MINIMAL.replace(*change))
    assert "board.toml" in str(caught.value)


def test_two_candidates_of_one_name_are_refused(tmp_path: Path) -> None:
    again = '[[recipe.candidates]]\nname = "int8"\nquantization = "none"\n'
    with pytest.raises(ProfileError, match="two candidates are called 'int8'"):
        _load(tmp_path, MINIMAL + again)


def test_an_unknown_name_offers_the_closest() -> None:
    with pytest.raises(ProfileError, match=r"did you mean 'mobile'\?"):
        load_target("moble")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="does not exist"):
        load_target(tmp_path / "none.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProfileError, match="must be UTF-8"):
        load_recipe(binary)
    huge = tmp_path / "huge.toml"
    huge.write_text("#" * (2 << 20))
    with pytest.raises(ProfileError, match="at most 1 MiB"):
        load_recipe(huge)


def test_saturation_follows_the_instruction_set(tmp_path: Path) -> None:
    assert load_target("cloud-cpu").int8_may_saturate
    assert not load_target("mobile").int8_may_saturate
    vnni = MINIMAL.replace('"arm64"', '"x86-64"\nfeatures = ["avx_vnni"]')
    assert not _load(tmp_path, vnni).int8_may_saturate


def test_profiles_for_arm_ask_the_cpu_that_they_name() -> None:
    """What the emulated CPU tells is budgeted, and costs are counted, not timed on this machine."""
    for name, device in (("mobile", "arm64:cortex-a76"), ("edge", "arm64:cortex-a53")):
        target = load_target(name)
        assert device in [entry.name for entry in target.devices]
        for metric in ("instruction_ratio", "device_difference", "device_cosine_drop"):
            assert getattr(target.budgets, metric) is not None, f"{name}: {metric}"

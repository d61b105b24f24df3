"""The stand-alone runner: schedules, caches, session settings."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.devices import runner
from tests.devices.graphs import VOCABULARY, cached_decoder, product


def test_it_travels_alone() -> None:
    """Standard library, numpy and the two runtimes; nothing of this package."""
    tree = ast.parse(Path(runner.__file__).read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or ".").split(".")[0])
    assert found - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "onnxruntime_genai"}


def _schedule(seed: int, rounds: int = 12) -> tuple[list[str], dict[str, Any]]:
    calls: list[str] = []

    def turn(name: str) -> runner.Turn:
        def run() -> dict[str, float]:
            calls.append(name)
            return {"run": 1000.0 + len(calls)}

        return run

    spec = {"seed": seed, "rounds": rounds, "seconds": 0, "max_rounds": rounds}
    return calls, runner.interleave({n: turn(n) for n in ("a", "b", "c")}, spec)


def test_rounds_interleave_all_models_in_changing_order() -> None:
    calls, times = _schedule(seed=3)
    warm = 3 * runner.WARM_UPS
    rounds = [tuple(calls[i : i + 3]) for i in range(warm, len(calls), 3)]
    assert len(rounds) == 12
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 2
    # what is recorded for round i is what round i measured
    for i, order in enumerate(rounds):
        for place, name in enumerate(order):
            assert times[name]["run"][i] == 1000.0 + warm + 3 * i + place + 1
    assert _schedule(seed=3)[0] == calls
    assert _schedule(seed=4)[0] != calls


def test_short_runs_are_run_twice_and_timed_once() -> None:
    calls = 0

    def turn() -> dict[str, float]:
        nonlocal calls
        calls += 1
        return {"run": 0.1}

    spec = {"seed": 0, "rounds": 5, "seconds": 0, "max_rounds": 5}
    times = runner.interleave({"a": turn}, spec)
    assert calls == runner.WARM_UPS + 2 * 5
    assert times["a"]["run"] == [0.1] * 5


class Recording:
    """A real session that remembers the feeds it was run with."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.fed: list[dict[str, np.ndarray[Any, Any]]] = []

    def get_inputs(self) -> Any:
        return self.session.get_inputs()

    def get_outputs(self) -> Any:
        return self.session.get_outputs()

    def run_with_ort_values(self, outputs: Any, feeds: dict[str, Any]) -> Any:
        self.fed.append({name: value.numpy().copy() for name, value in feeds.items()})
        return self.session.run_with_ort_values(outputs, feeds)


def test_decoding_feeds_the_chosen_token_and_the_grown_cache(tmp_path: Path) -> None:
    session = Recording(runner.open_session(cached_decoder(tmp_path).directory, 1))
    prompt = np.random.default_rng(1).integers(0, VOCABULARY, (2, 5))
    phases = runner.cached_turn(session, prompt, 3)()
    assert set(phases) == {"prefill", "decode"}
    assert [f["input_ids"].shape for f in session.fed] == [(2, 5), (2, 1), (2, 1), (2, 1)]
    assert [f["past_key_values.0.key"].shape[2] for f in session.fed] == [0, 5, 6, 7]
    assert [f["attention_mask"].shape for f in session.fed] == [(2, 5), (2, 6), (2, 7), (2, 8)]
    # greedy decoding with the cache is greedy decoding without it
    ids = prompt
    for fed in session.fed[1:]:
        whole = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.broadcast_to(np.arange(ids.shape[1]), ids.shape),
            "past_key_values.0.key": np.zeros((2, 1, 0, 4), np.float32),
            "past_key_values.0.value": np.zeros((2, 1, 0, 4), np.float32),
        }
        chosen = session.session.run(["logits"], whole)[0][:, -1].argmax(-1)
        np.testing.assert_array_equal(fed["input_ids"][:, 0], chosen)
        ids = np.concatenate([ids, fed["input_ids"]], axis=1)


def test_sessions_are_set_up_as_they_ship(tmp_path: Path) -> None:
    from exporter.graph.session import open_run

    model = product(tmp_path, 8)
    ours = runner.open_session(model.directory, 2).get_session_options()
    shipped = open_run(model, threads=2).session.get_session_options()
    for name in ("intra_op_num_threads", "inter_op_num_threads", "graph_optimization_level"):
        assert getattr(ours, name) == getattr(shipped, name)
    spinning = "session.intra_op.allow_spinning"
    assert ours.get_session_config_entry(spinning) == "0"
    assert shipped.get_session_config_entry(spinning) == "0"


def test_the_session_preference_is_read(tmp_path: Path) -> None:
    model = product(tmp_path, 8)
    preference = model.directory / "session.json"
    preference.write_text(json.dumps({"disabled_optimizers": ["SkipLayerNormFusion"]}))
    runner.open_session(model.directory, 1)
    preference.write_text(json.dumps({"disabled_optimizers": 5}))
    with pytest.raises(TypeError):
        runner.open_session(model.directory, 1)


def test_a_prompt_is_cut_to_the_smallest_context_for_all_models(tmp_path: Path) -> None:
    workload = {"batch": 1, "sequence_length": 8, "prompt_length": 128, "decode_tokens": 32}
    for name, text in (
        ("a", '{"n_positions": 100}'),
        ("b", '{"max_position_embeddings": 64}'),
        ("c", None),
    ):
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "config.json").write_text(text)
    directories = [tmp_path / name for name in "abc"]
    cut = runner.fitted(workload, directories)
    assert cut["prompt_length"] + cut["decode_tokens"] + 1 <= 64
    assert min(cut["prompt_length"], cut["decode_tokens"]) >= 1
    assert runner.fitted(workload, directories[2:]) == workload


def test_inputs_that_follow_from_tokens_are_made_and_others_asked_for(tmp_path: Path) -> None:
    ids = np.asarray([[3, 4, 5]])
    np.testing.assert_array_equal(runner._made("attention_mask", {"input_ids": ids}), [[1, 1, 1]])
    np.testing.assert_array_equal(runner._made("position_ids", {"input_ids": ids}), [[0, 1, 2]])
    session = runner.open_session(product(tmp_path, 8).directory, 1)
    with pytest.raises(ValueError, match="'x'"):
        runner.plain_turn(session, {"input_ids": ids})

"""The stand-alone runner: schedules, caches, session settings."""

from __future__ import annotations

import ast
import itertools
import json
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
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


def _schedule(
    seed: int, rounds: int = 12, openings: int = 1, goals: tuple[int, ...] = ()
) -> tuple[list[str], dict[str, Any], list[int]]:
    """Calls ("open a" or "a"), the result, and how many rounds there were at each question."""
    calls: list[str] = []
    asked: list[int] = []
    wanted = list(goals)

    def load(name: str) -> runner.Turn:
        calls.append(f"open {name}")

        def run() -> dict[str, float]:
            calls.append(name)
            return {"run": 1000.0 + len(calls)}

        return run

    def ask(result: dict[str, Any]) -> int:
        asked.append(sum(result["blocks"]))
        return wanted.pop(0) if wanted else 0

    spec = {"seed": seed, "rounds": rounds, "openings": openings, "limit_seconds": None}
    return calls, runner.interleave(load, ["a", "b", "c"], spec, ask), asked


def test_rounds_interleave_all_models_in_changing_order() -> None:
    calls, result, _ = _schedule(seed=3)
    times = result["times_ms"]
    warm = 3 * (1 + runner.WARM_UPS)
    rounds = [tuple(calls[i : i + 3]) for i in range(warm, len(calls), 3)]
    assert len(rounds) == 12
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 2
    # what is recorded for round i is what round i measured: warm-up is dropped
    for i, order in enumerate(rounds):
        for place, name in enumerate(order):
            assert times[name]["run"][i] == 1000.0 + warm + 3 * i + place + 1
    assert _schedule(seed=3)[0] == calls
    assert _schedule(seed=4)[0] != calls


def test_models_are_opened_anew_in_changing_order_and_blocks_say_where() -> None:
    calls, result, asked = _schedule(seed=1, rounds=12, openings=5, goals=(24, 24))
    assert result["blocks"] == [3, 3, 3, 3, 3, 3, 3, 3]
    assert asked == [12, 24]
    assert all(len(phases["run"]) == 24 for phases in result["times_ms"].values())
    opened = [call for call in calls if call.startswith("open")]
    orders = [tuple(opened[i : i + 3]) for i in range(0, len(opened), 3)]
    assert len(orders) == 8
    assert len(set(orders)) > 2
    assert all(len(set(order)) == 3 for order in orders)


def test_a_model_is_let_go_before_it_is_opened_anew() -> None:
    """Two sessions of one model at once would need twice its memory."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Turn:
        def __call__(self) -> dict[str, float]:
            return {"run": 60.0}

    def load(name: str) -> runner.Turn:
        nonlocal most
        turn = Turn()
        alive.add(turn)
        most = max(most, len(alive))
        return turn

    spec = {"seed": 0, "rounds": 6, "openings": 3, "limit_seconds": None}
    result = runner.interleave(load, ["a", "b"], spec, lambda result: 0)
    assert result["blocks"] == [2, 2, 2]
    assert most == 2


def test_no_more_rounds_are_asked_for_once_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(runner, "time", SimpleNamespace(perf_counter=lambda: next(clock)))

    def load(name: str) -> runner.Turn:
        return lambda: {"run": 60.0}

    asked: list[int] = []

    def ask(result: dict[str, Any]) -> int:
        asked.append(sum(result["blocks"]))
        return 10**9

    spec = {"seed": 0, "rounds": 7, "openings": 2, "limit_seconds": 50}
    result = runner.interleave(load, ["a"], spec, ask)
    assert asked == [7]
    assert 7 < sum(result["blocks"]) == len(result["times_ms"]["a"]["run"]) < 60
    # the rounds that were promised come even so
    late = runner.interleave(load, ["a"], {**spec, "limit_seconds": 0}, ask)
    assert sum(late["blocks"]) == 7
    assert asked == [7]


def test_short_runs_are_run_twice_and_timed_once() -> None:
    calls = 0

    def turn() -> dict[str, float]:
        nonlocal calls
        calls += 1
        return {"run": 0.1}

    spec = {"seed": 0, "rounds": 5, "openings": 1, "limit_seconds": None}
    result = runner.interleave(lambda name: turn, ["a"], spec, lambda result: 0)
    assert calls == runner.WARM_UPS + 2 * 5
    assert result["times_ms"]["a"]["run"] == [0.1] * 5


def test_an_orphan_does_not_wait(tmp_path: Path) -> None:
    """The end of its input, or of whoever reads its output, ends the runner."""
    feeds = tmp_path / "feeds.npz"
    np.savez(feeds, x=np.ones((1, 8), np.float32))
    spec = {
        "job": "time",
        "models": {"m": str(product(tmp_path / "m", 8).directory)},
        "feeds": str(feeds),
        "workload": {"batch": 1, "sequence_length": 1, "prompt_length": 1, "decode_tokens": 1},
        "threads": 1,
        "rounds": 5,
        "openings": 1,
        "limit_seconds": None,
        "seed": 0,
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    command = [sys.executable, "-P", runner.__file__, "spec.json", "result.json"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}

    process = subprocess.Popen(command, cwd=tmp_path, **pipes)  # type: ignore[call-overload]
    output, _ = process.communicate(timeout=60)  # closes its input at once
    assert process.returncode == 0
    assert [line[:5] for line in output.splitlines()] == [*[b"round"] * 5, b'{"wor']
    written = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert len(written["times_ms"]["m"]["run"]) == 5

    endless = subprocess.Popen(command, cwd=tmp_path, **pipes)  # type: ignore[call-overload]
    endless.stdin.write(b"more 1000000000\n")
    endless.stdin.flush()
    while not endless.stdout.readline().startswith(b"{"):
        pass
    endless.stdout.close()
    assert endless.wait(timeout=60) != 0
    endless.stdin.close()


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
    phases = runner.cached_turn(session, prompt, 3, runner.Watch())()
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
        runner.plain_turn(session, {"input_ids": ids}, runner.Watch())


def test_the_first_run_of_a_job_is_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = runner.open_session(product(tmp_path / "m", 8).directory, 1)
    runs: list[Any] = []

    class Counted(Recording):
        def run(self, outputs: Any, feeds: Any) -> Any:
            runs.append(outputs)
            return self.session.run(outputs, feeds)

    monkeypatch.setattr(runner, "open_session", lambda *_: Counted(session))
    spec = {"marks": False, "threads": 1, "cost": True, "repeats": 3, "calls": 0}
    spec |= {"workload": {}, "outputs": str(tmp_path / "outputs.npz")}
    told = runner.run(tmp_path, spec, {"workload/x": np.ones((1, 8), np.float32)})
    assert len(runs) == 1 + 3
    assert len(told["times_ms"]["run"]) == 3
    assert [phase for phase, _, _ in told["regions"]] == ["load", "run", "run", "run"]

"""Run and measure ONNX models in a process of their own: `python runner.py spec.json result.json`.

One file that travels alone to wherever it runs: standard library, numpy and onnxruntime, and
onnxruntime-genai only for directories with a genai_config.json. It reads a job from the
spec and writes one JSON object.

    {"job": "time", "models": {NAME: DIRECTORY, ...}, "feeds": NPZ, "workload": {...},
     "threads": N, "rounds": N, "openings": N, "limit_seconds": S or null, "seed": N}
        -> {"workload": {...}, "times_ms": {NAME: {PHASE: [ms a round, ...]}}, "blocks": [N, ...]}
    {"job": "memory", "models": {NAME: DIRECTORY}, "feeds": NPZ, "workload": {...}, "threads": N}
        -> {"workload": {...}, "peak_mib": x, "baseline_mib": y}
    {"job": "run", "wire": 1, "models": {"model": DIRECTORY}, "feeds": NPZ, "calls": N,
     "cost": BOOL, "workload": {...}, "threads": N, "repeats": N, "marks": BOOL, "outputs": NPZ}
        -> {"wire": 1, "runtime": VERSION, "load_ms": x, "times_ms": {PHASE: [ms a repeat, ...]},
            "regions": [[PHASE, BEGIN, END], ...], "heap_mib": x, "peak_mib": x,
            "outputs_sha256": HEX, "facts": {...}}

The job "run" is what devices do: open one model, run the workload once unseen and then `repeats`
times for its cost, then answer each call. The feeds of call I are the arrays "I/NAME" of the NPZ,
the workload's are "workload/NAME"; outputs come back as "I/NAME", and the "tokens" and "logits"
that a language model wrote. With "marks" a system call that no kernel has, MARK, with the number
BEGIN or END tells a counting emulator where each region lies. Any job with "wire" that fails leaves
{"wire": 1, "error": {"reason": "disk" | "memory" | "refused" | "failed", "message": TEXT}}.

The workload that comes back is the one that ran: a prompt longer than a model's context is cut,
for all models alike. A line "round" goes to standard output after each timed round. When the rounds
are done, a line with the result so far follows, and a line "more N" on standard input asks for N
rounds in all. Anything else ends the timing, and so does the end of the input: a runner whose
parent is gone does not wait.

Language models have the phases "prefill" (ms for the whole prompt and the first token) and
"decode" (ms for each further token); everything else has the one phase "run".
"""

from __future__ import annotations

import ctypes
import errno
import gc
import hashlib
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WIRE = 1
MARK = 20302  # no kernel has so many system calls
PAST, PRESENT = "past_key_values", "present"
WARM_UPS = 3
# A run shorter than this starts on caches that the other model just filled; it is run twice
# and timed once.
SHORT_RUN_MS = 50.0
# A run longer than this is warm after one, and three at each opening would cost minutes.
LONG_RUN_MS = 500.0
# Of the types that ONNX graphs take as feeds.
TYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}

Feeds = dict[str, "np.ndarray[Any, Any]"]
Turn = Callable[[], dict[str, float]]  # runs the workload once: phase -> ms


class Watch:
    """Times regions and, where asked to, marks their ends for a counting emulator.

    Attributes:
        regions: (phase, mark at its begin, mark at its end), in order.
    """

    def __init__(self, marks: bool = False) -> None:
        self.regions: list[tuple[str, int, int]] = []
        self._system = ctypes.CDLL(None).syscall if marks else None
        self._marks = 0
        self._begin = 0.0

    def begin(self) -> None:
        """Open a region."""
        self._mark()
        self._begin = time.perf_counter()

    def end(self, phase: str) -> float:
        """Close it; its ms."""
        ms = 1e3 * (time.perf_counter() - self._begin)
        self._mark()
        self.regions.append((phase, self._marks - 1, self._marks))
        return ms

    def _mark(self) -> None:
        self._marks += 1
        if self._system is not None:
            self._system(MARK, self._marks)


def open_session(directory: Path, threads: int) -> Any:
    """An onnxruntime session on `directory`/model.onnx, set up as session.json says."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads take cores from whatever else runs and gain nothing at low load.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    preference = directory / "session.json"
    disabled: list[str] = []
    if preference.is_file():
        disabled = json.loads(preference.read_text(encoding="utf-8")).get("disabled_optimizers", [])
    return onnxruntime.InferenceSession(
        str(directory / "model.onnx"),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=disabled or None,
    )


def plain_turn(session: Any, feeds: Feeds, watch: Watch) -> Turn:
    """One inference of `feeds`; inputs that the graph does not take are left out."""
    given = {}
    for node in session.get_inputs():
        array = feeds[node.name] if node.name in feeds else _made(node.name, feeds)
        given[node.name] = np.ascontiguousarray(array, TYPES.get(node.type))

    def turn() -> dict[str, float]:
        watch.begin()
        session.run(None, given)
        return {"run": watch.end("run")}

    return turn


def _made(name: str, feeds: Feeds) -> np.ndarray[Any, Any]:
    """An input that follows from the tokens: one unpadded text a row."""
    if "input_ids" in feeds:
        batch, length = feeds["input_ids"].shape
        if name == "attention_mask":
            return np.ones((batch, length))
        if name == "token_type_ids":
            return np.zeros((batch, length))
        if name == "position_ids":
            return np.broadcast_to(np.arange(length), (batch, length))
    raise ValueError(f"the model asks for the input '{name}', which has no feed")


def cached_turn(
    session: Any,
    prompt: np.ndarray[Any, Any],
    tokens: int,
    watch: Watch,
    wrote: list[tuple[Any, Any]] | None = None,
) -> Turn:
    """Prefill of `prompt` (batch, length), then `tokens` greedy steps on the grown cache.

    Args:
        wrote: gets each step's token (batch, 1) and the logits (batch, vocabulary) it is from.
    """
    from onnxruntime import OrtValue

    batch, length = prompt.shape
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = [node.name for node in session.get_outputs()]
    logits = outputs.index("logits")

    def numbers(name: str, array: np.ndarray[Any, Any]) -> Any:
        return OrtValue.ortvalue_from_numpy(array.astype(TYPES[inputs[name].type]))

    def empty(node: Any) -> Any:
        # (batch, heads, past, head size): free in front is the batch, free elsewhere the past.
        shape = [
            size if isinstance(size, int) else (0 if axis else batch)
            for axis, size in enumerate(node.shape)
        ]
        return OrtValue.ortvalue_from_numpy(np.zeros(shape, TYPES[node.type]))

    def step(ids: np.ndarray[Any, Any], past: dict[str, Any], seen: int) -> tuple[Any, Any]:
        new = ids.shape[1]
        feeds = dict(past)
        feeds["input_ids"] = numbers("input_ids", ids)
        if "attention_mask" in inputs:
            feeds["attention_mask"] = numbers("attention_mask", np.ones((batch, seen + new)))
        if "position_ids" in inputs:
            positions = np.broadcast_to(np.arange(seen, seen + new), (batch, new))
            feeds["position_ids"] = numbers("position_ids", positions)
        if "cache_position" in inputs:
            feeds["cache_position"] = numbers("cache_position", np.arange(seen, seen + new))
        answers = session.run_with_ort_values(outputs, feeds)
        grown = {
            name.replace(PRESENT, PAST, 1): value
            for name, value in zip(outputs, answers, strict=True)
            if name.startswith(PRESENT)
        }
        last = answers[logits].numpy()[:, -1]
        chosen = last.argmax(-1)[:, None]
        if wrote is not None:
            wrote.append((chosen, last))
        return chosen, {name: value for name, value in grown.items() if name in inputs}

    def turn() -> dict[str, float]:
        past = {name: empty(node) for name, node in inputs.items() if name.startswith(PAST)}
        watch.begin()
        ids, past = step(prompt, past, 0)
        prefill = watch.end("prefill")
        watch.begin()
        for done in range(tokens):
            ids, past = step(ids, past, length + done)
        return {"prefill": prefill, "decode": watch.end("decode") / tokens}

    return turn


def genai_turn(directory: Path, prompt: np.ndarray[Any, Any], tokens: int, threads: int) -> Turn:
    """Prefill of `prompt` (batch, length), then `tokens` greedy steps, by onnxruntime-genai."""
    import onnxruntime_genai as genai

    session_options = {
        "intra_op_num_threads": threads,
        "inter_op_num_threads": 1,
        "session.intra_op.allow_spinning": "0",
    }
    config = genai.Config(str(directory))
    overlay = {"model": {"decoder": {"session_options": session_options}}}
    config.overlay(json.dumps(overlay))
    model = genai.Model(config)
    batch, length = prompt.shape
    # An early end-of-text would shorten the workload of one model and not of the other.
    total = length + tokens + 1

    def turn() -> dict[str, float]:
        options = genai.GeneratorParams(model)
        options.set_search_options(
            batch_size=batch, max_length=total, min_length=total, do_sample=False, num_beams=1
        )
        generator = genai.Generator(model, options)
        begin = time.perf_counter()
        generator.append_tokens(prompt.astype(np.int32))
        generator.generate_next_token()
        middle = time.perf_counter()
        for _ in range(tokens):
            generator.generate_next_token()
        end = time.perf_counter()
        return {"prefill": 1e3 * (middle - begin), "decode": 1e3 * (end - middle) / tokens}

    return turn


def context_length(directory: Path) -> int | None:
    """Tokens the model can see at once, as far as its own files say."""
    try:
        genai = json.loads((directory / "genai_config.json").read_text(encoding="utf-8"))
        return int(genai["model"]["context_length"])
    except (OSError, LookupError, ValueError, TypeError):
        pass
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    for key in ("max_position_embeddings", "n_positions", "n_ctx"):
        if isinstance(config.get(key), int):
            return int(config[key])
    return None


def fitted(workload: dict[str, int], directories: list[Path]) -> dict[str, int]:
    """The workload with prompt and decoded tokens cut to what every model's context holds."""
    limits = [limit for d in directories if (limit := context_length(d)) is not None]
    length, tokens = workload["prompt_length"], workload["decode_tokens"]
    if limits and length + tokens + 1 > min(limits):
        tokens = max(1, min(tokens, min(limits) // 4))
        length = max(1, min(length, min(limits) - tokens - 1))
    return {**workload, "prompt_length": length, "decode_tokens": tokens}


def load_turn(directory: Path, feeds: Feeds, workload: dict[str, int], threads: int) -> Turn:
    """The workload of one model as a callable, loaded and ready."""
    genai = (directory / "genai_config.json").is_file()
    session = None if genai else open_session(directory, threads)
    if session and not cached(session):
        return plain_turn(session, feeds, Watch())
    prompt = np.resize(feeds["input_ids"], (workload["batch"], workload["prompt_length"]))
    if genai:
        return genai_turn(directory, prompt, workload["decode_tokens"], threads)
    return cached_turn(session, prompt, workload["decode_tokens"], Watch())


def cached(session: Any) -> bool:
    """True when the graph takes a cache of keys and values."""
    return any(node.name.startswith(PAST) for node in session.get_inputs())


def interleave(
    load: Callable[[str], Turn],
    names: list[str],
    spec: dict[str, Any],
    ask: Callable[[dict[str, Any]], int],
) -> dict[str, Any]:
    """Rounds in which each model runs once, in an order drawn anew.

    The models are opened anew `openings` times on the way to each goal, because where a session
    happens to lie in memory makes it faster or slower for as long as it lives.

    Args:
        load: opens a model.
        ask: gets {"times_ms": model -> phase -> ms, "blocks": rounds of each opening}, returns the
            rounds that are wanted in all. It is not asked again once `limit_seconds` are over.
    """
    order = random.Random(spec["seed"])
    names = sorted(names)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    blocks: list[int] = []
    result = {"times_ms": times, "blocks": blocks}
    last: dict[str, float] = {}
    turns: dict[str, Turn] = {}
    done, goal, begin = 0, spec["rounds"], time.perf_counter()

    def over() -> bool:
        limit = spec["limit_seconds"]
        enough = done >= spec["rounds"]
        return enough and limit is not None and time.perf_counter() - begin >= limit

    gc.disable()
    while done < goal and not over():
        block = -(-(goal - done) // spec["openings"])
        while done < goal and not over():
            turns.clear()  # never two sessions of one model at once
            gc.collect()
            order.shuffle(names)
            for name in names:
                turns[name] = load(name)
                for _ in range(WARM_UPS if last.get(name, 0.0) < LONG_RUN_MS else 1):
                    last[name] = sum(turns[name]().values())
            blocks.append(0)
            while blocks[-1] < block and done < goal and not over():
                order.shuffle(names)
                for name in names:
                    if last[name] < SHORT_RUN_MS:
                        turns[name]()
                    phases = turns[name]()
                    last[name] = sum(phases.values())
                    for phase, ms in phases.items():
                        times[name].setdefault(phase, []).append(ms)
                done += 1
                blocks[-1] += 1
                print("round", flush=True)
        if not over():
            goal = ask(result)
    gc.enable()
    result["blocks"] = [size for size in blocks if size]
    return result


def ask_parent(result: dict[str, Any]) -> int:
    """Show the result so far and wait for `more N`; 0 for anything else."""
    print(json.dumps(result), flush=True)
    word, _, number = sys.stdin.readline().partition(" ")
    return int(number) if word == "more" else 0


def _resident_mib(field: str) -> float | None:
    """VmHWM or VmRSS of this process, or None where there is no /proc."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None


def peak_since_start_mib() -> float:
    """Peak resident memory by the system's own account, in MiB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


def measure_memory(directory: Path, spec: dict[str, Any], feeds: Feeds) -> dict[str, Any]:
    """Peak resident MiB of this process while it loads one model and runs the workload twice."""
    import onnxruntime  # noqa: F401  (the library itself belongs to the baseline)

    baseline = _resident_mib("VmRSS")
    cleared = _clear_peak()
    turn = load_turn(directory, feeds, spec["workload"], spec["threads"])
    turn()
    turn()
    peak = _resident_mib("VmHWM") if cleared else None
    return {
        "peak_mib": peak_since_start_mib() if peak is None else peak,
        "baseline_mib": baseline,
    }


def run(directory: Path, spec: dict[str, Any], arrays: Feeds) -> dict[str, Any]:
    """The job "run": open one model, take the workload's cost, answer the calls."""
    import onnxruntime

    outputs: Feeds = {}
    times: dict[str, list[float]] = {}
    watch = Watch(spec["marks"])
    gc.collect()
    gc.disable()
    cleared, heap = _clear_peak(), _heap_mib()
    watch.begin()
    session = open_session(directory, spec["threads"])
    load_ms = watch.end("load")
    if spec["cost"]:
        feeds = {name[9:]: array for name, array in arrays.items() if name.startswith("workload/")}
        workload, wrote = spec["workload"], list[tuple[Any, Any]]()
        if cached(session):
            prompt = np.resize(feeds["input_ids"], (workload["batch"], workload["prompt_length"]))
            cached_turn(session, prompt, workload["decode_tokens"], Watch(), wrote)()
            turn = cached_turn(session, prompt, workload["decode_tokens"], watch)
            outputs["tokens"] = np.concatenate([tokens for tokens, _ in wrote], axis=1)
            outputs["logits"] = np.stack([logits for _, logits in wrote])
        else:
            turn = plain_turn(session, feeds, watch)
            plain_turn(session, feeds, Watch())()
        for _ in range(spec["repeats"]):
            for phase, ms in turn().items():
                times.setdefault(phase, []).append(ms)
    heap_now = _heap_mib()
    peak = _resident_mib("VmHWM") if cleared else None
    names = [n.name for n in session.get_outputs() if not n.name.startswith(PRESENT)]
    for index in range(spec["calls"]):
        start = f"{index}/"
        given = {n[len(start) :]: array for n, array in arrays.items() if n.startswith(start)}
        for name, array in zip(names, session.run(names, given), strict=True):
            outputs[start + name] = array
    np.savez(spec["outputs"], **outputs)  # type: ignore[arg-type]
    return {
        "runtime": onnxruntime.__version__,
        "load_ms": load_ms,
        "times_ms": times,
        "regions": watch.regions,
        "heap_mib": None if heap is None or heap_now is None else max(0.0, heap_now - heap),
        "peak_mib": peak,
        "outputs_sha256": hashlib.sha256(Path(spec["outputs"]).read_bytes()).hexdigest(),
        "facts": {"machine": platform.machine(), "python": platform.python_version()},
    }


def _clear_peak() -> bool:
    """Start VmHWM anew; False where the system does not let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


class _Mallinfo2(ctypes.Structure):
    # man 3 mallinfo: bytes in mapped blocks are the fifth, in use on the heap the eighth
    _fields_ = [(f"field{i}", ctypes.c_size_t) for i in range(10)]


def _heap_mib() -> float | None:
    """What malloc has handed out in this process, or None where glibc ≥ 2.33 does not tell."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return None
    mallinfo2.restype = _Mallinfo2
    told = mallinfo2()
    return float(told.field4 + told.field7) / (1 << 20)


def do(spec: dict[str, Any]) -> dict[str, Any]:
    """The job that `spec` describes."""
    if spec.get("wire", WIRE) != WIRE:
        raise ValueError(f"the job is of wire version {spec['wire']}, this runner speaks {WIRE}")
    with np.load(spec["feeds"], allow_pickle=False) as loaded:
        feeds = dict(loaded)
    models = {name: Path(directory) for name, directory in spec["models"].items()}
    spec["workload"] = fitted(spec["workload"], list(models.values()))
    result: dict[str, Any] = {"workload": spec["workload"]}
    if spec["job"] == "run":
        (directory,) = models.values()
        return result | run(directory, spec, feeds)
    if spec["job"] == "memory":
        (directory,) = models.values()
        return result | measure_memory(directory, spec, feeds)

    def load(name: str) -> Turn:
        return load_turn(models[name], feeds, spec["workload"], spec["threads"])

    def ask(so_far: dict[str, Any]) -> int:
        return ask_parent({**result, **so_far})

    return result | interleave(load, list(models), spec, ask)


def _reason(error: BaseException) -> str:
    """Why a job failed, in the word that the wire has for it."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "disk"
    text = str(error).lower()
    if isinstance(error, MemoryError) or "bad_alloc" in text or "failed to allocate" in text:
        return "memory"
    return "refused" if type(error).__module__.startswith("onnxruntime") else "failed"


def main(spec_path: str, result_path: str) -> int:
    """Do the job in `spec_path` and write its result to `result_path`; the exit code."""
    # onnxruntime would start a thread that reports home, and write a database for it.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    spec = json.loads(Path(spec_path).read_text(encoding="utf-8"))
    status = 0
    try:
        result = do(spec)
    except Exception as error:
        if "wire" not in spec:
            raise
        result, status = {"error": {"reason": _reason(error), "message": str(error)}}, 1
    if "wire" in spec:
        result["wire"] = WIRE
    Path(result_path).write_text(json.dumps(result), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))

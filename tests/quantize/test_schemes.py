"""What every scheme must do, on a real graph of each kind it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from exporter.graph.audit import INTEGER_KERNELS, audit
from exporter.graph.model import OnnxModel
from exporter.graph.session import open_run
from exporter.graph.tidy import save_graph
from exporter.models.examples import Calibration, Examples
from exporter.quantize import QuantizeOptions, QuantizeResult, get_scheme
from exporter.recipe import SCHEMES
from tests.quantize.conftest import image_examples, token_examples

TASKS = {
    "encoder": "text-classification",
    "decoder": "text-generation",
    "convnet": "image-classification",
}
# Least ratio of signal to error, in dB; random weights are harder than trained ones.
CASES = {
    ("none", "encoder"): 200.0,
    ("none", "decoder"): 200.0,
    ("none", "convnet"): 200.0,
    ("dynamic-int8", "encoder"): 20.0,
    ("dynamic-int8", "decoder"): 20.0,
    ("static-int8", "encoder"): 20.0,
    ("static-int8", "convnet"): 20.0,
    ("int8-weights", "encoder"): 15.0,
    ("int8-weights", "decoder"): 25.0,
    ("int4-weights", "encoder"): 3.0,
    ("int4-weights", "decoder"): 8.0,
    ("float16", "encoder"): 40.0,
    ("float16", "decoder"): 40.0,
    ("float16", "convnet"): 40.0,
}
REFUSED = [(s, k) for s in SCHEMES for k in TASKS if (s, k) not in CASES]
PARAMETERS = pytest.mark.parametrize(("scheme", "kind"), list(CASES))


@pytest.fixture(scope="module")
def models(encoder: OnnxModel, decoder: OnnxModel, convnet: OnnxModel) -> dict[str, OnnxModel]:
    return {"encoder": encoder, "decoder": decoder, "convnet": convnet}


def examples_of(kind: str) -> Examples[Calibration]:
    return image_examples() if kind == "convnet" else token_examples()


def quantized(scheme: str, kind: str, model: OnnxModel, out: Path) -> QuantizeResult:
    options = QuantizeOptions(calibration=examples_of(kind))
    return get_scheme(scheme).quantize(model, out, options)


def size(model: OnnxModel) -> int:
    return sum(path.stat().st_size for path in model.weight_files())


def signal_to_error_db(kind: str, reference: OnnxModel, candidate: OnnxModel) -> float:
    first, second = open_run(reference), open_run(candidate)
    signal = error = 0.0
    for batch in examples_of(kind).batches(1):
        expected = first(batch.feeds)["logits"]
        got = second(batch.feeds)["logits"]
        assert got.dtype == np.float32
        signal += float(np.square(expected).sum())
        error += float(np.square(expected - got).sum())
    return 10 * float(np.log10(signal / max(error, 1e-30)))


@PARAMETERS
def test_answers_stay_close_and_every_planned_kernel_runs(
    scheme: str, kind: str, models: dict[str, OnnxModel], tmp_path: Path
) -> None:
    model = models[kind]
    assert get_scheme(scheme).applies(model, TASKS[kind]) is None
    result = quantized(scheme, kind, model, tmp_path / "out")
    assert signal_to_error_db(kind, model, result.model) >= CASES[scheme, kind]
    found = audit(result.model)
    assert found.integer_kernels == result.integer >= result.planned
    if scheme not in ("none", "float16"):
        assert found.float_matmuls == () == result.kept_float
        assert result.planned >= 9
        assert size(result.model) < 0.55 * size(model)
    others = {p.name for p in model.directory.iterdir()} - {"model.onnx", "model.onnx.data"}
    assert others <= {p.name for p in result.model.directory.iterdir()}


@PARAMETERS
def test_equal_inputs_give_equal_bytes(
    scheme: str, kind: str, models: dict[str, OnnxModel], tmp_path: Path
) -> None:
    first = quantized(scheme, kind, models[kind], tmp_path / "first")
    second = quantized(scheme, kind, models[kind], tmp_path / "second")
    assert first.model.path.read_bytes() == second.model.path.read_bytes()


@PARAMETERS
def test_weights_beside_the_graph_stay_beside_it_and_mean_the_same(
    scheme: str, kind: str, models: dict[str, OnnxModel], tmp_path: Path
) -> None:
    """Models past 2 GiB come this way; a small one must take the same path."""
    inline = quantized(scheme, kind, models[kind], tmp_path / "inline")
    external = save_graph(ir.load(models[kind].path), tmp_path / "source", inline_limit_bytes=0)
    assert len(external.weight_files()) == 2
    result = quantized(scheme, kind, external, tmp_path / "external")
    assert len(result.model.weight_files()) == 2
    assert result.model.path.stat().st_size < size(inline.model)
    feeds = next(examples_of(kind).batches(1)).feeds
    expected = open_run(inline.model)(feeds)["logits"]
    np.testing.assert_array_equal(open_run(result.model)(feeds)["logits"], expected)


@pytest.mark.parametrize(("scheme", "kind"), REFUSED)
def test_a_scheme_that_does_not_fit_says_why(
    scheme: str, kind: str, models: dict[str, OnnxModel]
) -> None:
    reason = get_scheme(scheme).applies(models[kind], TASKS[kind])
    assert reason is not None
    assert "static-int8" in reason or "dynamic-int8" in reason  # what to take instead


def test_a_quantized_graph_is_not_quantized_again(encoder: OnnxModel, tmp_path: Path) -> None:
    once = quantized("int4-weights", "encoder", encoder, tmp_path / "once").model
    for scheme in set(SCHEMES) - {"none"}:
        assert "MatMulNBits" in str(get_scheme(scheme).applies(once, "text-classification"))


def test_an_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"int3.*dynamic-int8"):
        get_scheme("int3")


def test_finer_blocks_are_closer_and_larger(decoder: OnnxModel, tmp_path: Path) -> None:
    made = {
        block: get_scheme("int4-weights")
        .quantize(decoder, tmp_path / str(block), QuantizeOptions(block_size=block))
        .model
        for block in (16, 64)
    }
    close = {block: signal_to_error_db("decoder", decoder, made[block]) for block in made}
    assert close[16] > close[64]
    assert size(made[16]) > size(made[64])


def stored(value: ir.Value) -> ir.Value:
    """The initializer behind a value, through what onnxruntime folds when it loads."""
    while value.producer() is not None:
        assert value.producer().op_type in ("Transpose", "Reshape")
        value = value.producer().inputs[0]
    return value


@pytest.mark.parametrize("scheme", ["dynamic-int8", "int8-weights", "int4-weights"])
def test_tied_embeddings_are_stored_once(scheme: str, decoder: OnnxModel, tmp_path: Path) -> None:
    result = quantized(scheme, "decoder", decoder, tmp_path / "out")
    graph = ir.load(result.model.path).graph
    lookup = next(n for n in graph if "embed_tokens" in n.outputs[0].name and "Gather" in n.op_type)
    head = graph.outputs[0].producer()
    assert stored(lookup.inputs[0]) is stored(head.inputs[1])
    assert stored(head.inputs[1]).dtype in (ir.DataType.INT8, ir.DataType.UINT8)


@pytest.mark.parametrize("scheme", ["dynamic-int8", "int8-weights", "int4-weights", "float16"])
def test_the_generation_runtime_writes_the_same_first_token(
    scheme: str, decoder: OnnxModel, tmp_path: Path
) -> None:
    import onnxruntime_genai as genai

    result = quantized(scheme, "decoder", decoder, tmp_path / "out")
    prompt = token_examples().feeds[0]["input_ids"]
    written = []
    for model in (decoder, result.model):
        loaded = genai.Model(str(model.directory))
        parameters = genai.GeneratorParams(loaded)
        parameters.set_search_options(max_length=len(prompt) + 8, do_sample=False)
        generator = genai.Generator(loaded, parameters)
        generator.append_tokens(prompt[None].astype(np.int32))
        generator.generate_next_token()
        written.append(int(generator.get_next_tokens()[0]))
        generator.generate_next_token()  # decoding with a cache works too
    if scheme == "int4-weights":
        top = np.argsort(open_run(decoder)({"input_ids": prompt[None]})["logits"][0, -1])[-5:]
        assert written[1] in top
    else:
        assert written[0] == written[1]


def test_it_works_without_chatter(
    decoder: OnnxModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    """A library that sets up logging (the genai builder does) makes others' notes visible."""
    with caplog.at_level("INFO"):
        quantized("float16", "decoder", decoder, tmp_path / "half")
        quantized("int4-weights", "decoder", decoder, tmp_path / "four")
    assert not caplog.records
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


@PARAMETERS
def test_the_audit_names_each_layer_with_the_format_that_runs(
    scheme: str, kind: str, models: dict[str, OnnxModel], tmp_path: Path
) -> None:
    made = quantized(scheme, kind, models[kind], tmp_path / "out").model
    layers = audit(made).layers
    formats = {x.format for x in layers}
    integer = {x.format for x in layers if x.op in INTEGER_KERNELS}
    if scheme == "none":
        assert formats == {"float32"}
    elif scheme == "float16":
        # most of it is widened again on a CPU, once, when the session is made
        assert "float32" in formats
        assert formats <= {"float16", "float32"}
    elif scheme != "int4-weights":
        assert integer == {"int8"}
    elif kind == "decoder":
        assert "int4" in integer
    assert len({x.name for x in layers}) == len(layers)
    if scheme != "float16" and kind != "convnet":  # convolutions run with padded channels
        assert sum(x.size_bytes for x in layers) <= size(made)

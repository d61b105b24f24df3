"""Every family exports, answers what its module answers, and leaves nothing else behind."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from exporter.errors import ModelError, ParityError
from exporter.graph.audit import audit
from exporter.graph.export import export_model
from exporter.graph.model import OnnxModel
from exporter.graph.parity import ParityReport, check_parity
from exporter.graph.session import open_run
from exporter.models.load import LoadedModule
from exporter.models.runner import torch_run
from exporter.models.tasks import get_task
from exporter.progress import Silent
from tests.graph.conftest import TASKS, Exported

Get = Callable[[str], Exported]


@pytest.mark.parametrize("family", TASKS)
def test_graph_answers_what_the_module_answers(exported: Get, family: str) -> None:
    it = exported(family)
    report = check_parity(
        torch_run(it.loaded.module), it.model, it.task, it.config, it.loaded.preprocessor
    )
    assert report.max_abs_diff < 1e-4
    names = " / ".join(case.name for case in report.cases)
    wanted = {
        "text-generation": ("length 128", "left padding", "right padding", "decode with cache"),
        "image-classification": ("batch 1", "batch 3"),
    }.get(it.task.name, ("length 1", "length 64", "left padding", "right padding"))
    assert all(name in names for name in wanted)
    assert ParityReport.from_json(report.to_json()) == report


@pytest.mark.parametrize("family", TASKS)
def test_file_holds_the_model_and_nothing_of_this_machine(exported: Get, family: str) -> None:
    it = exported(family)
    content = it.model.path.read_bytes()
    for trace in (b"site-packages", b"stack_trace", b"pkg.torch", str(Path.home()).encode()):
        assert trace not in content
    kept = [name for name in open_run(it.model).outputs if not name.startswith("present.")]
    assert kept == ["last_hidden_state" if it.task.name == "feature-extraction" else "logits"]
    files = {path.name for path in it.model.directory.iterdir()}
    assert files >= {"model.onnx"}
    assert it.model.genai == (family in ("llama", "qwen3", "gemma3"))
    assert not it.model.genai or files >= {"genai_config.json", "tokenizer.json"}


@pytest.mark.parametrize("family", ["vit", "gemma3"])
def test_exporting_again_is_quiet_and_gives_the_same_bytes(
    exported: Get, family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    it = exported(family)
    capfd.readouterr()
    again = it.again(tmp_path / "again")
    assert capfd.readouterr() == ("", "")
    first = {p.name: p.read_bytes() for p in it.model.directory.iterdir()}
    assert {p.name: p.read_bytes() for p in again.directory.iterdir()} == first


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_graph_prefills_and_decodes(exported: Get, family: str) -> None:
    it = exported(family)
    prompt = np.array([[2, 9, 14, 21]])
    whole = it.loaded.module.generate(  # type: ignore[operator]
        torch.from_numpy(prompt), max_new_tokens=8, do_sample=False, eos_token_id=None
    ).numpy()
    run = open_run(it.model)
    tokens, cache, fresh = prompt, {}, prompt
    for _ in range(8):
        mask = np.ones_like(tokens)
        answer, cache = run.with_cache({"input_ids": fresh, "attention_mask": mask, **cache})
        fresh = answer["logits"][:, -1:].argmax(-1)
        tokens = np.concatenate([tokens, fresh], axis=1)
    np.testing.assert_array_equal(tokens, whole)


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_genai_runtime_generates_the_same_tokens(exported: Get, family: str) -> None:
    import onnxruntime_genai

    it = exported(family)
    prompt = [2, 9, 14, 21, 30]
    expected = it.loaded.module.generate(  # type: ignore[operator]
        torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=None
    )[0].tolist()
    model = onnxruntime_genai.Model(str(it.model.directory))
    options = onnxruntime_genai.GeneratorParams(model)
    options.set_search_options(max_length=len(expected), do_sample=False)
    generator = onnxruntime_genai.Generator(model, options)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    got = generator.get_sequence(0).tolist()
    assert got == expected[: len(got)]
    assert len(got) > len(prompt)


def test_weights_in_memory_are_what_is_exported(exported: Get, tmp_path: Path) -> None:
    it = exported("llama")
    changed = copy.deepcopy(it.loaded.module)
    with torch.no_grad():
        changed.get_parameter("model.norm.weight").mul_(2)
    loaded = LoadedModule(changed, it.loaded.preprocessor, None)
    model = export_model(
        loaded, task=it.task, config=it.config, checkpoint=None, out=tmp_path / "model"
    )
    feeds = {"input_ids": np.array([[5, 6, 7]]), "attention_mask": np.ones((1, 3), np.int64)}
    np.testing.assert_allclose(
        open_run(model)(feeds)["logits"], 2 * open_run(it.model)(feeds)["logits"], rtol=1e-4
    )


class Notes(Silent):
    """Keeps the remarks."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_a_member_that_the_builder_gets_wrong_goes_another_way(
    exported: Get, tmp_path: Path
) -> None:
    """Heads of 8: GroupQueryAttention with rotary inside refuses to run them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    it = exported("llama")
    torch.manual_seed(0)
    config = {**it.config, "head_dim": 8, "num_hidden_layers": 1}
    module = LlamaForCausalLM(LlamaConfig(**config)).eval()
    notes = Notes()
    model = export_model(
        LoadedModule(module, it.loaded.preprocessor, None),
        task=it.task,
        config=config,
        checkpoint=None,
        out=tmp_path / "model",
        progress=notes,
    )
    assert not model.genai
    assert [path.name for path in model.directory.iterdir()] == ["model.onnx"]
    assert len(notes.said) == 1
    assert "builder cannot be used" in notes.said[0]
    assert "head_size" in notes.said[0]
    check_parity(torch_run(module), model, it.task, config, it.loaded.preprocessor)


class Plain(torch.nn.Module):
    """Convolution, batch norm, two linears; a tuple out, of which the first is scored."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(1, 8, 3)
        self.norm = torch.nn.BatchNorm2d(8)
        self.hidden = torch.nn.Linear(8 * 36, 16)
        self.head = torch.nn.Linear(16, 4)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.relu(self.norm(self.convolution(image))).flatten(1)
        hidden = torch.relu(self.hidden(features))
        return self.head(hidden), hidden


class Tokens(torch.nn.Module):
    """A bag of embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(50, 16)
        self.head = torch.nn.Linear(16, 4)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.table(input_ids)).mean(1))


def test_plain_module_exports_with_a_dynamic_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Plain().eval()
    example = {"image": np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype(np.float32)}
    task = get_task("image-classification")
    model = export_model(
        LoadedModule(module, None, example), task=task, config={}, checkpoint=None, out=tmp_path
    )
    report = check_parity(torch_run(module), model, task, {}, None, example_inputs=example)
    assert [case.name for case in report.cases] == ["batch 1", "batch 3"]
    operators = {node.op_type for node in onnx.load(model.path).graph.node}
    assert "Gemm" not in operators
    assert "BatchNormalization" not in operators
    assert list(open_run(model).outputs) == ["logits", "output_1"]


def test_plain_module_of_tokens_takes_any_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Tokens().eval()
    example = {"input_ids": np.array([[1, 2, 3, 4, 5]])}
    task = get_task("text-classification")
    model = export_model(
        LoadedModule(module, None, example), task=task, config={}, checkpoint=None, out=tmp_path
    )
    longer = {"input_ids": np.arange(36).reshape(3, 12)}
    np.testing.assert_allclose(
        open_run(model)(longer)["logits"], torch_run(module)(longer)["logits"], atol=1e-6
    )


@torch.library.custom_op("exporter_tests::odd", mutates_args=())
def odd(x: torch.Tensor) -> torch.Tensor:
    """An operator that ONNX does not know."""
    return x.clone()


@odd.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Unknown(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return odd(x) + 1


def test_unsupported_operator_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    example = {"x": np.ones((2, 3), np.float32)}
    with pytest.raises(ModelError, match=r"Unknown: every operator must exist.*exporter_tests.odd"):
        export_model(
            LoadedModule(Unknown(), None, example),
            task=get_task("image-classification"),
            config={},
            checkpoint=None,
            out=tmp_path / "model",
        )
    assert not (tmp_path / "model").exists()


def _with_weights(
    source: OnnxModel, out: Path, change: Callable[[np.ndarray], np.ndarray]
) -> OnnxModel:
    """A copy whose largest weight is changed."""
    shutil.copytree(source.directory, out)
    model = onnx.load(source.path)
    largest = max(model.graph.initializer, key=lambda w: int(np.prod(w.dims)))
    largest.CopyFrom(
        numpy_helper.from_array(change(numpy_helper.to_array(largest).copy()), largest.name)
    )
    onnx.save(model, out / "model.onnx")
    return OnnxModel(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w * np.float32(1.01), "must agree within"),
        (lambda w: np.full_like(w, np.nan), "the graph answers NaN"),
    ],
)
def test_gate_stops_a_graph_that_differs(
    exported: Get, tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    it = exported("vit")
    wrong = _with_weights(it.model, tmp_path / "wrong", change)
    with pytest.raises(ParityError, match=message):
        check_parity(torch_run(it.loaded.module), wrong, it.task, it.config, it.loaded.preprocessor)


def test_gate_stops_a_module_of_nan(exported: Get) -> None:
    it = exported("vit")
    broken = copy.deepcopy(it.loaded.module)
    with torch.no_grad():
        next(iter(broken.parameters())).fill_(float("nan"))
    with pytest.raises(ParityError, match="the module itself answers NaN"):
        check_parity(torch_run(broken), it.model, it.task, it.config, it.loaded.preprocessor)


def test_gate_sees_a_mask_that_the_graph_ignores(exported: Get, tmp_path: Path) -> None:
    it = exported("bert")
    out = tmp_path / "deaf"
    shutil.copytree(it.model.directory, out)
    model = onnx.load(it.model.path)
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            if name == "attention_mask":
                node.input[at] = "seen"
    # Input ids are never all zero, so every token counts as seen, padding too.
    zero = numpy_helper.from_array(np.array(0, np.int64), "nothing")
    model.graph.initializer.append(zero)
    model.graph.node.insert(0, onnx.helper.make_node("Mul", ["input_ids", "nothing"], ["none"]))
    one = numpy_helper.from_array(np.array(1, np.int64), "something")
    model.graph.initializer.append(one)
    model.graph.node.insert(1, onnx.helper.make_node("Add", ["none", "something"], ["seen"]))
    onnx.save(model, out / "model.onnx")
    with pytest.raises(ParityError, match="padding: module and graph must agree"):
        check_parity(
            torch_run(it.loaded.module), OnnxModel(out), it.task, it.config, it.loaded.preprocessor
        )


def test_every_weight_of_a_decoder_is_a_matmul(exported: Get) -> None:
    """GPT-2's Conv1D would be Gemm, which weight-only quantizers pass over."""
    found = audit(exported("gpt2").model)
    assert len(found.float_matmuls) == 2 * 4 + 1

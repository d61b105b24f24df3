"""Sources: every kind is found, every broken one is refused with one clear message."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from exporter.errors import ModelError
from exporter.models.load import load_checkpoint, load_module, load_preprocessor
from exporter.models.runner import torch_run
from exporter.models.source import Source, resolve_source
from tests.tiny import checkpoint

FAMILIES = {
    "bert": "text-classification",
    "modernbert": "text-classification",
    "bert-encoder": "feature-extraction",
    "gpt2": "text-generation",
    "llama": "text-generation",
    "gemma3": "text-generation",
    "vit": "image-classification",
    "mobilenetv2": "image-classification",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: checkpoint(family, root / family) for family in FAMILIES}


@pytest.fixture
def bert(made: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(made["bert"], tmp_path / "bert"))


def refused(model: str | Path, task: str | None = None, **options: bool) -> str:
    with pytest.raises(ModelError) as caught:
        resolve_source(str(model), task=task, **options)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_task_is_inferred_and_the_checkpoint_runs(made: dict[str, Path], family: str) -> None:
    source = resolve_source(str(made[family]), task=None)
    assert (source.kind, source.name, source.task) == ("checkpoint", family, FAMILIES[family])
    loaded = load_module(source)
    assert loaded.preprocessor is not None
    assert not loaded.module.training
    assert {str(p.dtype) for p in loaded.module.parameters()} == {"torch.float32"}


def test_hash_follows_weights_and_tokenizer_and_not_the_readme(bert: Path) -> None:
    before = resolve_source(str(bert), task=None).content_hash
    (bert / "README.md").write_text("new words")
    assert resolve_source(str(bert), task=None).content_hash == before
    tokenizer = bert / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    changed = resolve_source(str(bert), task=None).content_hash
    weights = bytearray((bert / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (bert / "model.safetensors").write_bytes(weights)
    assert len({before, changed, resolve_source(str(bert), task=None).content_hash}) == 3


def test_missing_directory_offers_the_closest(bert: Path) -> None:
    message = refused(bert.parent / "brt")
    assert "no such directory" in message
    assert f"did you mean {bert}" in message


def test_unknown_task_offers_the_closest(bert: Path) -> None:
    assert "did you mean 'text-classification'" in refused(bert, "text-clasification")


def test_task_that_the_architecture_cannot_do(made: dict[str, Path]) -> None:
    assert "--task text-generation must be one that vit can do" in refused(
        made["vit"], "text-generation"
    )


def test_task_without_its_head_is_refused_on_load(made: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"no classifier\.bias"):
        load_checkpoint(made["bert-encoder"], "text-classification")


def test_missing_and_corrupt_config(bert: Path) -> None:
    (bert / "config.json").write_text('{"model_type": "bert",')
    assert "must be valid JSON" in refused(bert)
    (bert / "config.json").unlink()
    assert "config.json" in refused(bert)


def edit_config(directory: Path, **changes: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))


def test_unsupported_architecture(bert: Path) -> None:
    edit_config(bert, model_type="brt")
    assert "got brt" in refused(bert)


def test_architecture_for_a_task_that_is_not_ours(bert: Path) -> None:
    edit_config(bert, architectures=["BertForQuestionAnswering"])
    message = refused(bert)
    assert "question-answering" in message
    assert "pass --task" in message


def test_config_that_does_not_fit_the_weights(bert: Path) -> None:
    edit_config(bert, intermediate_size=128)
    source = resolve_source(str(bert), task=None)
    with pytest.raises(ModelError, match=r"must load|every weight"):
        load_module(source)


def test_custom_code_needs_to_be_allowed(bert: Path) -> None:
    edit_config(bert, model_type="mine", auto_map={"AutoModelForCausalLM": "mine.Mine"})
    assert "--trust-remote-code" in refused(bert)


def test_no_weights_and_pickles(bert: Path) -> None:
    import torch
    from safetensors.torch import load_file

    state = load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    assert "must hold model.safetensors" in refused(bert)
    torch.save(state, bert / "pytorch_model.bin")
    assert "--allow-pickle" in refused(bert)
    source = resolve_source(str(bert), task=None, allow_pickle=True)
    assert source.allow_pickle
    assert torch.equal(
        load_module(source).module.state_dict()["classifier.bias"], state["classifier.bias"]
    )


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_truncated_safetensors(bert: Path, kept: int) -> None:
    path = bert / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "truncated" in refused(bert)


def test_corrupt_safetensors_header(bert: Path) -> None:
    path = bert / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:12] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert "JSON header" in refused(bert)


def test_header_that_claims_to_be_huge(bert: Path) -> None:
    (bert / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    assert "truncated" in refused(bert)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_that_are_not_finite_are_named(bert: Path, dtype: str, value: float) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = bert / "model.safetensors"
    kind = getattr(torch, dtype)
    state = {name: tensor.to(kind) for name, tensor in load_file(path).items()}
    save_file(state, path, {"format": "pt"})
    resolve_source(str(bert), task=None)  # finite ones pass in every width
    state["classifier.weight"][1, 2] = value
    save_file(state, path, {"format": "pt"})
    assert "classifier.weight holds NaN or inf" in refused(bert)


def test_missing_shard_and_shard_outside(bert: Path) -> None:
    (bert / "model.safetensors").unlink()
    index = bert / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert "named in the index and missing" in refused(bert)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    assert "may only name safetensors files beside it" in refused(bert)


def test_sharded_checkpoint_equals_the_single_file(made: dict[str, Path], tmp_path: Path) -> None:
    whole = load_module(resolve_source(str(made["bert"]), task=None)).module
    directory = tmp_path / "sharded"
    whole.save_pretrained(directory, max_shard_size="10KB")
    assert len(list(directory.glob("*.safetensors"))) > 1
    source = resolve_source(str(directory), task=None)
    feeds = {"input_ids": np.array([[2, 9, 11, 3]]), "unknown": np.zeros(1)}
    ours = torch_run(load_module(source).module)(feeds)["logits"]
    np.testing.assert_array_equal(ours, torch_run(whole)(feeds)["logits"])
    next(iter(directory.glob("model-*.safetensors"))).unlink()
    assert "missing" in refused(directory)


def test_corrupt_tokenizer(bert: Path) -> None:
    (bert / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="its tokenizer must load"):
        load_preprocessor(resolve_source(str(bert), task=None))


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert "must be a checkpoint directory" in refused(tmp_path / "notes.txt")


ONNX_BYTES = 4096


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 32])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path / "net.onnx"
    onnx.save(model, str(path))
    return path


def externalized(path: Path) -> Path:
    import onnx

    onnx.save_model(
        onnx.load(str(path)),
        str(path),
        save_as_external_data=True,
        location="net.data",
        size_threshold=16,
    )
    return path.parent / "net.data"


def test_onnx_file(onnx_file: Path) -> None:
    source = resolve_source(str(onnx_file), task="image-classification")
    assert (source.kind, source.name, source.config) == ("onnx", "net", {})
    assert load_preprocessor(source) is None
    with pytest.raises(ModelError, match="no PyTorch module"):
        load_module(source)
    assert "pass --task" in refused(onnx_file)


def test_onnx_file_with_a_tokenizer_beside_it(onnx_file: Path, made: dict[str, Path]) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(made["bert"] / name, onnx_file.parent)
    source = resolve_source(str(onnx_file), task=None)
    assert source.task == "text-classification"
    tokenizer = load_preprocessor(source)
    assert tokenizer is not None
    assert tokenizer("cat")["input_ids"][0] == 2


@pytest.mark.parametrize("kept", [0, 100, ONNX_BYTES])
def test_truncated_onnx(onnx_file: Path, kept: int) -> None:
    onnx_file.write_bytes(onnx_file.read_bytes()[:kept])
    assert "must be a valid ONNX model" in refused(onnx_file, "image-classification")


def test_missing_and_invalid_onnx(onnx_file: Path) -> None:
    import onnx

    assert "must exist" in refused(onnx_file.parent / "other.onnx", "image-classification")
    model = onnx.load(str(onnx_file))
    model.graph.node[0].input[0] = "nowhere"
    onnx.save(model, str(onnx_file))
    assert "nowhere" in refused(onnx_file, "image-classification")


def test_onnx_with_nan(onnx_file: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(onnx_file))
    weight = np.array(numpy_helper.to_array(model.graph.initializer[0]))
    weight[3, 4] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    onnx.save(model, str(onnx_file))
    assert "w holds NaN" in refused(onnx_file, "image-classification")
    externalized(onnx_file)
    assert "w holds NaN" in refused(onnx_file, "image-classification")


def test_external_data_is_part_of_the_model(onnx_file: Path) -> None:
    data = externalized(onnx_file)
    before = resolve_source(str(onnx_file), task="image-classification").content_hash
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    assert resolve_source(str(onnx_file), task="image-classification").content_hash != before
    data.write_bytes(content[:100])
    assert "truncated" in refused(onnx_file, "image-classification")
    data.unlink()
    assert "missing" in refused(onnx_file, "image-classification")


def test_external_data_outside_the_directory_is_refused(onnx_file: Path) -> None:
    import onnx

    data = externalized(onnx_file)
    data.rename(onnx_file.parent.parent / "net.data")
    model = onnx.load(str(onnx_file), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../net.data"
    onnx_file.write_bytes(model.SerializeToString())
    assert "must lie in the model's directory" in refused(onnx_file, "image-classification")


MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
    def forward(self, pixels, bias=None):
        return self.layer(pixels)

def seeded():
    torch.manual_seed(3)
    return Net().double(), (torch.zeros(2, 4),)

def unseeded():
    return Net(), {"pixels": torch.zeros(2, 4)}

def broken():
    net = Net()
    net.layer.bias.data[1] = float("nan")
    return net, torch.zeros(2, 4)

def bare():
    return Net()

def too_many():
    return Net(), (torch.zeros(1),) * 3
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "user_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return "user_nets"


def test_module_from_a_function(nets: str) -> None:
    source = resolve_source(f"{nets}:seeded", task="image-classification")
    assert (source.kind, source.name, source.path) == ("module", "seeded", None)
    loaded = load_module(source)
    assert loaded.example_inputs is not None
    assert loaded.example_inputs["pixels"].shape == (2, 4)
    outputs = torch_run(loaded.module, threads=1)({"pixels": np.ones((5, 4), np.float32)})
    assert outputs["logits"].shape == (5, 3)
    assert outputs["logits"].dtype == np.float32


def test_function_must_return_the_same_weights_each_time(nets: str) -> None:
    source: Source = resolve_source(f"{nets}:unseeded", task="image-classification")
    with pytest.raises(ModelError, match="same weights each time"):
        load_module(source)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("broken", "layer.bias holds NaN"),
        ("bare", "must return"),
        ("too_many", "must return"),
        ("absent", "must define the function absent"),
    ],
)
def test_bad_functions(nets: str, function: str, told: str) -> None:
    assert told in refused(f"{nets}:{function}", "image-classification")


def test_function_without_task_and_without_module(nets: str) -> None:
    assert "pass --task" in refused(f"{nets}:seeded")
    assert "must be importable" in refused("no_such_package:build", "image-classification")

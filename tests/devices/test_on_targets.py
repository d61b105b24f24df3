"""Answers about targets that only their own CPUs can give: none of these can the host fake."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import exporter
from exporter.devices.device import Job
from exporter.devices.host import host_features
from exporter.graph.model import OnnxModel
from exporter.graph.saturation import saturations
from exporter.judge.devices import judge_devices
from exporter.judge.reading import Reading
from exporter.judge.survey import home, survey
from exporter.models.examples import Development, Examples
from exporter.models.tasks import get_task
from exporter.progress import Silent
from exporter.quantize import QuantizeOptions, get_scheme
from exporter.target import VNNI, DeviceEntry, Target, load_target
from tests import chain, tiny
from tests.devices.emulated import counting
from tests.devices.graphs import product

INPUTS, CLASSES = 64, 8
HEAVY = (2, 5)  # channels in which every weight is as large as it gets


def _classifier(directory: Path) -> OnnxModel:
    """x (batch, 64) -> logits (batch, 8); two channels of weights of one sign and size."""
    rng = np.random.default_rng(0)
    weight = rng.uniform(0.8, 1, (INPUTS, CLASSES)).astype(np.float32)
    weight[1::2] *= -0.1  # neighbours of different signs never add up
    weight[:, HEAVY] = 1.0
    value = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"], "heavy")],
        "graph",
        [value("x", shape=["batch", INPUTS])],
        [value("logits", shape=["batch", CLASSES])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    directory.mkdir(parents=True)
    onnx.save(model, directory / "model.onnx")
    return OnnxModel(directory)


def _survey(name: str, reference: OnnxModel, candidate: OnnxModel, target: Target) -> Reading:
    rng = np.random.default_rng(1)
    feeds = tuple({"x": rng.uniform(0.9, 1, INPUTS).astype(np.float32)} for _ in range(12))
    ids = tuple(map(str, range(12)))
    examples = Examples(Development, ids, feeds, tuple(range(12)), np.full(12, HEAVY[0]), {})
    task = get_task("text-classification")
    batch = {"x": feeds[0]["x"][None]}
    at_home = home(task, reference, candidate, examples, batch, target.workload, Silent())
    device = counting(name)
    return survey(
        device,
        DeviceEntry(name=name),
        task,
        reference,
        candidate,
        examples,
        at_home,
        batch,
        target.workload,
        target,
        lambda device, job: device.run(job, timeout_s=120),
    )


@pytest.mark.skipif(not VNNI & set(host_features()), reason="this CPU saturates by itself")
def test_saturation_is_caught_named_and_repaired(tmp_path: Path) -> None:
    target = load_target("cloud-cpu")
    assert target.int8_may_saturate
    reference = _classifier(tmp_path / "float")
    scheme = get_scheme("dynamic-int8")
    bold = scheme.quantize(reference, tmp_path / "bold", QuantizeOptions()).model
    told = _survey("x86-64:haswell", reference, bold, target)
    assert told.here is not None
    assert told.there is not None
    assert told.here.cosine > 0.999  # exact where products are added in int32
    assert told.there.cosine < 0.99
    lost = {j.metric: j for j in judge_devices([told], target, "text-classification")}
    assert lost["device_cosine_drop"].verdict == "FAIL"
    assert lost["device_difference"].verdict == "PASS"  # float32 is float32
    for word in ("heavy", "2 of 8 channels (2, 5)", "up to 64,770 of 32,767"):
        assert word in lost["device_cosine_drop"].reason

    ((risk,), looked) = saturations(bold)
    assert looked == 1
    assert risk.channels == HEAVY
    safe = scheme.quantize(
        reference, tmp_path / "safe", QuantizeOptions(reduce_range=target.int8_may_saturate)
    ).model
    assert saturations(safe) == ((), 1)
    told = _survey("x86-64:haswell", reference, safe, target)
    verdicts = {j.verdict for j in judge_devices([told], target, "text-classification")}
    assert verdicts == {"PASS"}
    assert told.facts.get("saturation") is None


def test_int8_pays_on_a76_and_hardly_on_a53(tmp_path: Path) -> None:
    """The same files; which of them a profile would take depends on the CPU that it names."""
    reference = product(tmp_path / "float", 256)
    int8 = get_scheme("dynamic-int8").quantize(reference, tmp_path / "int8", QuantizeOptions())
    feeds = {"x": np.ones((16, 256), np.float32)}
    ratios = {}
    for cpu in ("cortex-a53", "cortex-a76"):
        counts = []
        for model in (int8.model, reference):
            device = counting(f"arm64:{cpu}")
            job = Job(model.directory, (), feeds, repeats=1)
            counts.append(device.run(job, timeout_s=120).costs["run"][0])
        ratios[cpu] = counts[0] / counts[1]
    assert ratios["cortex-a76"] < 0.6
    assert ratios["cortex-a53"] > 1.4 * ratios["cortex-a76"]


def test_a_release_for_arm_is_judged_and_chosen_by_arm(tmp_path: Path) -> None:
    counting("arm64:cortex-a76")
    names = ("dynamic-int8", "pruned")
    few = [c for c in chain.RECIPE["candidates"] if c["name"] in names]
    changed = chain.quick_target("mobile", chain.RECIPE | {"candidates": few}).model_dump()
    changed["devices"] = [{"name": "arm64:cortex-a76", "required": True, "examples": 2}]
    changed["budgets"] = {
        "accuracy_drop_points": 60.0,
        "device_difference": 1e-4,
        "device_cosine_drop": 0.02,
        "instruction_ratio": 3.0,
    }
    result = exporter.export(
        tiny.checkpoint("bert", tmp_path / "bert"),
        data=chain.text_data(tmp_path / "rows.jsonl"),
        target=Target.model_validate(changed),
        out=tmp_path / "out",
        cache=tmp_path / "cache",
    )
    (told,) = result.report.devices
    assert told["status"] == "ran"
    assert told["unit"] == "instructions"
    assert told["facts"]["machine"] == "aarch64"
    again = exporter.check(result.directory, on=["profile"], cache=tmp_path / "cache")
    (anew,) = again.report.devices
    assert anew["candidate"] == told["candidate"]  # to the last instruction
    assert anew["reference"] == told["reference"]
    by_metric = {j.metric: j for j in result.judgements}
    assert by_metric["instruction_ratio"].verdict == "PASS"
    assert by_metric["device_difference"].verdict == "PASS"
    counted = {c.name: c.instruction_ratio for c in result.report.candidates}
    assert all(ratio is not None for ratio in counted.values())
    chosen = next(c for c in result.report.candidates if c.status == "chosen")
    passed = [c for c in result.report.candidates if c.status in ("chosen", "passed")]
    assert chosen.instruction_ratio == min(c.instruction_ratio for c in passed)  # type: ignore[type-var]
    assert exporter.verify(result.directory).sound

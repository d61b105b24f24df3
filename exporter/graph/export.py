"""Export: a module in memory becomes an ONNX model on disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import ExporterError, ExportError, ModelError
from exporter.graph.model import OnnxModel
from exporter.graph.quiet import quiet
from exporter.models.examples import Feeds
from exporter.progress import Progress, Silent

if TYPE_CHECKING:
    import torch

    from exporter.models.load import LoadedModule
    from exporter.models.tasks import Task

# The one output of each task that is scored; the others are dead weight on a device.
OUTPUT = {
    "text-generation": "logits",
    "text-classification": "logits",
    "image-classification": "logits",
    "feature-extraction": "last_hidden_state",
}
# Long enough for every rank, short enough for the smallest model; 0 and 1 would be fixed sizes.
TRACED_BATCH, TRACED_LENGTH = 2, 9


def export_model(
    loaded: LoadedModule,
    *,
    task: Task,
    config: dict[str, Any],
    checkpoint: Path | None,
    out: Path,
    progress: Progress | None = None,
) -> OnnxModel:
    """Write `loaded` to `out` as ONNX with dynamic batch and sequence.

    Language models of the families that onnxruntime-genai's builder knows become its graph,
    ready for that runtime. Other Hugging Face models go through transformers' exporter, plain
    modules through torch's.

    Args:
        config: the checkpoint's configuration, {} for a plain module.
        checkpoint: where the module's weights lie; None writes them to a temporary place
            where an exporter wants to read them itself.

    Raises:
        ModelError: the model uses an operator that ONNX does not have.
        ExportError: the exporter failed.
    """
    from transformers import PreTrainedModel

    from exporter.graph.genai import knows
    from exporter.graph.module import export_plain
    from exporter.graph.transformers_onnx import export_transformers

    module = loaded.module.eval()
    progress = progress or Silent()
    with progress.stage("export"):
        if not isinstance(module, PreTrainedModel):
            with _explained(module, out):
                return export_plain(module, _example(loaded, task, config), out)
        if task.name == "text-generation" and loaded.preprocessor is not None and knows(module):
            built = _for_genai(loaded, task, config, checkpoint, out)
            if isinstance(built, OnnxModel):
                return built
            progress.note(
                f"onnxruntime-genai's builder cannot be used for this model ({built}); "
                "exported with transformers instead, to run on plain onnxruntime"
            )
        with _explained(module, out):
            return export_transformers(
                module, _example(loaded, task, config), OUTPUT[task.name], task.name, out
            )


def _for_genai(
    loaded: LoadedModule, task: Task, config: dict[str, Any], checkpoint: Path | None, out: Path
) -> OnnxModel | str:
    """The builder's graph if it answers what the module answers, else the reason why not.

    The builder takes a family by name; one member of it may use what the builder passes over.
    """
    from exporter.graph.genai import build_genai
    from exporter.graph.parity import check_parity
    from exporter.models.runner import torch_run

    try:
        with _explained(loaded.module, out):
            model = build_genai(loaded.module, loaded.preprocessor, checkpoint, out)
            check_parity(torch_run(loaded.module), model, task, config, loaded.preprocessor)
            return model
    except (ExportError, ModelError) as error:
        return str(error).splitlines()[0]


def _example(loaded: LoadedModule, task: Task, config: dict[str, Any]) -> Feeds:
    if loaded.example_inputs is not None:
        return loaded.example_inputs
    return task.example_feeds(config, loaded.preprocessor, batch=TRACED_BATCH, length=TRACED_LENGTH)


@contextmanager
def _explained(module: torch.nn.Module, out: Path) -> Iterator[None]:
    """Quiet while it works; on failure nothing half-written and one message that tells why."""
    kind = type(module).__name__
    with quiet() as captured:
        try:
            yield
            return
        except (ExporterError, OSError, MemoryError):
            shutil.rmtree(out, ignore_errors=True)
            raise
        except Exception as error:  # exporters raise whatever their libraries raise
            shutil.rmtree(out, ignore_errors=True)
            failure = error
    missing = _unsupported(failure)
    if missing is not None:
        raise ModelError(
            kind,
            "every operator must exist in ONNX",
            got=missing,
            remedy="replace that operation in the module's forward.",
        ) from failure
    reason = " ".join(str(_root(failure)).split())[:400]
    said = captured.tail()
    raise ExportError(
        f"{kind}: could not be exported to ONNX, {type(_root(failure)).__name__}: {reason}; "
        f"run with --debug for the traceback.{chr(10) + said if said else ''}"
    ) from failure


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _root(error: BaseException) -> BaseException:
    return list(_chain(error))[-1]


def _unsupported(error: BaseException) -> str | None:
    """The operator that ONNX export has no translation for, if that is why it failed."""
    for link in _chain(error):
        if type(link).__name__ == "DispatchError":
            return str(link).split("Failure message")[0].strip().rstrip(".")
    return None

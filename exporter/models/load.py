"""Load a module and its preprocessor from a source, or from a checkpoint that a stage wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import ModelError
from exporter.models.architecture import AUTO_CLASSES
from exporter.models.examples import Feeds
from exporter.models.source import Source

if TYPE_CHECKING:
    import torch

# Any of these files tells that a directory holds a preprocessor of that kind.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "tokenizer.model")
_IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class LoadedModule:
    """A model in memory.

    Attributes:
        module: float32, in evaluation mode, eager attention.
        preprocessor: tokenizer or image processor, None if the source has none.
        example_inputs: given by the user's function, with the batch axis in front; else None.
    """

    module: torch.nn.Module
    preprocessor: Any | None
    example_inputs: Feeds | None


def load_module(source: Source) -> LoadedModule:
    """Load a checkpoint or build the user's module.

    Raises:
        ModelError: it does not load, or is an ONNX file, which has no module.
    """
    if source.kind == "module":
        return _built(source)
    if source.kind == "onnx" or source.path is None:
        raise ModelError(
            source.location,
            "an .onnx file has no PyTorch module",
            remedy="give the checkpoint it was exported from to prune or fine-tune.",
        )
    module = load_checkpoint(
        source.path,
        source.task,
        trust_remote_code=source.trust_remote_code,
        allow_pickle=source.allow_pickle,
    )
    return LoadedModule(module, load_preprocessor(source), None)


def load_checkpoint(
    directory: Path,
    task: str,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> torch.nn.Module:
    """The module of a checkpoint directory: float32, evaluation mode, eager attention.

    Raises:
        ModelError: weights are missing, do not fit the configuration, or cannot be read.
    """
    import torch
    import transformers

    auto = getattr(transformers, AUTO_CLASSES[task])
    try:
        with _quiet():
            module, info = auto.from_pretrained(
                directory,
                attn_implementation="eager",
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                use_safetensors=None if allow_pickle else True,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, ImportError) as error:
        raise ModelError(
            str(directory),
            f"must load as a model for {task}",
            got=" ".join(str(error).split())[:300],
            remedy="check it with transformers' from_pretrained.",
        ) from error
    # A bare encoder's pooler is never used: embeddings are pooled from last_hidden_state.
    missing = sorted(k for k in info["missing_keys"] if not k.startswith("pooler."))
    if missing or info["mismatched_keys"]:
        lacking = missing or sorted(str(k) for k in info["mismatched_keys"])
        raise ModelError(
            str(directory),
            f"must hold every weight of {type(module).__name__}",
            got=f"no {', '.join(lacking[:3])}{' …' if len(lacking) > 3 else ''}",
            remedy="train it for this task first, or pass the --task it was trained for.",
        )
    loaded: torch.nn.Module = module.float().eval()
    if allow_pickle:
        from exporter.models.module import check_finite

        check_finite(str(directory), loaded)
    return loaded


def load_preprocessor(source: Source) -> Any | None:
    """The tokenizer or image processor that lies with the model, None if there is none.

    Raises:
        ModelError: its files are there and cannot be read.
    """
    directory = source.preprocessor_directory
    if directory is None:
        return None
    return preprocessor_from(directory, source.task, trust_remote_code=source.trust_remote_code)


def preprocessor_from(directory: Path, task: str, *, trust_remote_code: bool = False) -> Any | None:
    """The preprocessor of a checkpoint directory, None if it holds none.

    Raises:
        ModelError: its files are there and cannot be read.
    """
    images = task == "image-classification"
    files = _IMAGE_FILES if images else _TOKENIZER_FILES
    if not any((directory / name).is_file() for name in files):
        return None
    import transformers

    kind = transformers.AutoImageProcessor if images else transformers.AutoTokenizer
    # The PIL backend needs no torchvision and gives the same pixels on every machine.
    options = {"backend": "pil"} if images else {}
    try:
        with _quiet():
            return kind.from_pretrained(
                directory, local_files_only=True, trust_remote_code=trust_remote_code, **options
            )
    except Exception as error:  # tokenizers raises bare Exception on a malformed file
        raise ModelError(
            str(directory),
            f"its {'image processor' if images else 'tokenizer'} must load",
            got=" ".join(str(error).split())[:300],
            remedy="copy the preprocessor files again from where the model came from.",
        ) from error


def _built(source: Source) -> LoadedModule:
    from exporter.models.module import build_module

    built = build_module(source.location)
    if built.content_hash != source.content_hash:
        raise ModelError(
            source.location,
            "must return the same weights each time it is called",
            remedy="load them from a file, or seed torch inside the function.",
        )
    return LoadedModule(built.module, None, built.example_inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own bars and warnings out of our output while it loads."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

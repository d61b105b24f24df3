"""Source: where a model comes from, checked up front so that nothing breaks an hour later."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from exporter.cache import sha256_file
from exporter.errors import ModelError
from exporter.models.architecture import check_architecture, check_task, infer_task
from exporter.models.imported import is_function_spec
from exporter.models.weights import check_safetensors, weight_files

# What besides the weights decides what a checkpoint computes. A README does not.
_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """A model that was checked and can be loaded.

    Attributes:
        kind: a Hugging Face checkpoint, a function that returns a module, or an ONNX file.
        name: short slug, names the output directory.
        location: as the user gave it.
        path: local checkpoint directory or .onnx file; None for a function.
        task: one of `exporter.recipe.TASKS`.
        content_hash: SHA-256 over weights, configuration and preprocessor files.
        config: parsed config.json, {} if there is none.
    """

    kind: Literal["checkpoint", "module", "onnx"]
    name: str
    location: str
    path: Path | None
    task: str
    content_hash: str
    allow_pickle: bool
    trust_remote_code: bool
    config: dict[str, Any]

    @property
    def from_hub(self) -> bool:
        """True when `location` is a hub id, not a place on this machine."""
        return self.kind == "checkpoint" and not Path(self.location).expanduser().exists()

    @property
    def preprocessor_directory(self) -> Path | None:
        """Where tokenizer or image processor files lie, if anywhere."""
        return self.path.parent if self.path and self.kind == "onnx" else self.path


def resolve_source(
    model: str,
    *,
    task: str | None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Source:
    """Find a model, prove that it is whole, and tell its task.

    Args:
        model: a local checkpoint directory, a hub id, `package.module:function` or a .onnx file.
        task: None to infer it.

    Raises:
        ModelError: it is missing, corrupt, unsupported, or its task cannot be told.
    """
    if task is not None:
        from exporter.models.tasks import get_task

        get_task(task)
    path = Path(model).expanduser()
    if path.suffix == ".onnx" and not path.is_dir():
        return _onnx(model, path, task)
    if not path.exists() and is_function_spec(model):
        return _module(model, task)
    if path.is_file():
        raise ModelError(
            model,
            "must be a checkpoint directory, a hub id, package.module:function or a .onnx file",
            remedy="give the directory that holds config.json.",
        )
    directory = path if path.is_dir() else _download(model, allow_pickle, trust_remote_code)
    return _checkpoint(model, directory, task, allow_pickle, trust_remote_code)


def _onnx(model: str, path: Path, task: str | None) -> Source:
    from exporter.models.onnx_file import check_onnx_file

    external = check_onnx_file(path)
    directory = path.parent
    config = read_config(directory) if (directory / "config.json").is_file() else {}
    if task is None:
        task = infer_task(model, config)
    files = [path, *external, *_companions(directory)]
    return Source(
        "onnx",
        _slug(path.stem if path.stem != "model" else directory.resolve().name),
        model,
        path,
        task,
        _hash_files(directory, files),
        False,
        False,
        config,
    )


def _module(model: str, task: str | None) -> Source:
    from exporter.models.module import build_module

    built = build_module(model)
    config = built.config
    if task is None:
        task = infer_task(model, config)
    name = _slug(model.partition(":")[2])
    return Source("module", name, model, None, task, built.content_hash, False, False, config)


def _checkpoint(
    model: str, directory: Path, task: str | None, allow_pickle: bool, trust_remote_code: bool
) -> Source:
    config = read_config(directory)
    check_architecture(model, config, trust_remote_code)
    weights = weight_files(directory, allow_pickle=allow_pickle)
    if task is None:
        task = infer_task(model, config)
    else:
        check_task(model, config, task)
    for file in weights:
        if file.suffix == ".safetensors":
            check_safetensors(file)
    code = sorted(directory.glob("*.py")) if trust_remote_code else []
    return Source(
        "checkpoint",
        _slug(model.rpartition("/")[2] if not Path(model).exists() else directory.resolve().name),
        model,
        directory,
        task,
        _hash_files(directory, [*weights, *_companions(directory), *code]),
        allow_pickle,
        trust_remote_code,
        config,
    )


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed config.json of a checkpoint.

    Raises:
        ModelError: missing or no JSON object.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ModelError(
            str(directory),
            "must be a checkpoint with a config.json",
            remedy="give the directory that save_pretrained wrote.",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(
            str(path), "must be valid JSON", got=str(error), remedy="download or copy it again."
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(
            str(path),
            "must be a JSON object with a model_type",
            remedy="give a Hugging Face checkpoint.",
        )
    return config


def _download(model: str, allow_pickle: bool, trust_remote_code: bool) -> Path:
    """A snapshot of a hub repository, without pickles or code unless they are allowed."""
    if not _HUB_ID.fullmatch(model) or model in (".", ".."):
        raise _missing(model, None)
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.safetensors.index.json", *_COMPANIONS]
    patterns += ["pytorch_model*.bin", "pytorch_model*.json"] if allow_pickle else []
    patterns += ["*.py"] if trust_remote_code else []
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except Exception as error:  # hub, HTTP and validation errors share no base class
        raise _missing(model, error) from error


def _missing(model: str, error: Exception | None) -> ModelError:
    path = Path(model).expanduser()
    around = path.parent if path.parent.is_dir() else Path()
    names = [p.name for p in around.iterdir() if p.is_dir() or p.suffix == ".onnx"]
    close = [str(around / n) for n in difflib.get_close_matches(path.name, names, n=2)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    rule = (
        "no such directory" if error is None else "no such directory, and the hub did not give it"
    )
    got = None if error is None else f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return ModelError(model, rule, got=got, remedy=f"{hint}check the path or the hub id.")


def _companions(directory: Path) -> list[Path]:
    return sorted({p for pattern in _COMPANIONS for p in directory.glob(pattern) if p.is_file()})


def _hash_files(root: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        digest.update(f"{path.relative_to(root).as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower().replace("_", "-")).strip("-.") or "model"

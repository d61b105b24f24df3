"""Architecture: whether transformers can build a checkpoint's model, and what task it is for."""

from __future__ import annotations

import difflib
from typing import Any

from exporter.errors import ModelError
from exporter.recipe import TASKS

# Task -> the Auto class that loads a checkpoint for it.
AUTO_CLASSES = {
    "text-generation": "AutoModelForCausalLM",
    "text-classification": "AutoModelForSequenceClassification",
    "feature-extraction": "AutoModel",
    "image-classification": "AutoModelForImageClassification",
}


def check_architecture(model: str, config: dict[str, Any], trust_remote_code: bool) -> None:
    """Refuse a configuration that the installed transformers cannot build.

    Raises:
        ModelError: unknown model_type, custom code that is not allowed, or invalid fields.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config["model_type"]
    if trust_remote_code and "auto_map" in config:
        return
    if kind not in CONFIG_MAPPING:
        close = difflib.get_close_matches(kind, list(CONFIG_MAPPING.keys()), n=2)
        custom = "pass --trust-remote-code if you trust its code" if "auto_map" in config else None
        near = f"did you mean {' or '.join(close)}" if close else "use a model type it knows"
        raise ModelError(
            f"{model}/config.json",
            "model_type must be known to the installed transformers",
            got=kind,
            remedy=f"{custom or near}.",
        )
    try:
        AutoConfig.for_model(**{k: v for k, v in config.items() if k != "transformers_version"})
    except Exception as error:  # each architecture validates its fields with its own exceptions
        raise ModelError(
            f"{model}/config.json",
            f"must be a valid {kind} configuration",
            got=" ".join(str(error).split())[:300],
            remedy="compare it with the checkpoint it came from.",
        ) from error


def check_task(model: str, config: dict[str, Any], task: str) -> None:
    """Refuse a task for which the architecture has no model.

    Raises:
        ModelError: it has none.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if config["model_type"] not in CONFIG_MAPPING:
        return  # its own code decides
    auto = getattr(transformers, AUTO_CLASSES[task])
    if CONFIG_MAPPING[config["model_type"]] not in auto._model_mapping:
        raise ModelError(
            model,
            f"--task {task} must be one that {config['model_type']} can do",
            remedy="leave --task out to infer it.",
        )


def infer_task(model: str, config: dict[str, Any]) -> str:
    """The task that the configuration's architecture was made for, by Optimum's TasksManager.

    Raises:
        ModelError: it tells none, or one that is not ours.
    """
    import transformers
    from optimum.exporters.tasks import TasksManager

    autos = [a for a in config.get("auto_map", {}) if a.startswith("AutoModel")]
    names = [*(config.get("architectures") or []), *autos]
    for name in names:
        kind = getattr(transformers, name, None)
        if kind is None:
            continue
        try:
            found = str(TasksManager.infer_task_from_model(kind))
        except ValueError:
            continue
        if found not in TASKS:
            raise _unknown(model, f"{name} is made for {found}, which is not one of ours")
        check_task(model, config, found)
        return found
    raise _unknown(model, f"no task is known for {', '.join(names) or 'a model without config'}")


def _unknown(model: str, why: str) -> ModelError:
    remedy = f"pass --task, one of {', '.join(TASKS)}."
    return ModelError(model, f"the task cannot be inferred: {why}", remedy=remedy)

"""Random-weight checkpoints of each family, small enough to go through the chain in seconds."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = (
    "the a one two three red blue green fast slow good bad happy sad cat dog bird fish tree house "
    "runs walks sleeps eats sees finds likes hates over under beside with without and or not very"
).split()
LABELS = ("animal", "colour", "other")


def sentences(count: int, seed: int = 0) -> list[str]:
    """Distinct sentences over a small vocabulary."""
    rng = random.Random(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        made[" ".join(rng.choices(WORDS, k=rng.randint(6, 18)))] = None
    return list(made)


def label_of(text: str) -> str:
    """A label that the words of the text decide."""
    words = set(text.split())
    if words & {"cat", "dog"}:
        return LABELS[0]
    return LABELS[1] if words & {"red", "blue", "green"} else LABELS[2]


def tokenizer(kind: str) -> Any:
    """A word-level tokenizer; `kind` is "encoder" ([CLS] … [SEP]) or "decoder" (<eos>)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate(specials + list(WORDS))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if kind == "encoder":
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=core,
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
            model_max_length=64,
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=128,
    )


def _bert(labels: int) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            num_labels=labels,
        )
    )


def _bert_encoder() -> Any:
    from transformers import BertModel

    return BertModel(_bert(2).config, add_pooling_layer=True)


def _modernbert(labels: int) -> Any:
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    return ModernBertForSequenceClassification(
        ModernBertConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=64,
            num_labels=labels,
            pad_token_id=0,
            cls_token_id=2,
            sep_token_id=3,
            bos_token_id=2,
            eos_token_id=3,
            global_attn_every_n_layers=3,
            local_attention=16,
        )
    )


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=64,
            n_positions=128,
            n_embd=32,
            n_layer=2,
            n_head=4,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=0,
        )
    )


_DECODER: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_DECODER, head_dim=16))


def _qwen3() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**_DECODER, head_dim=16, tie_word_embeddings=True))


def _gemma3() -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            **_DECODER,
            head_dim=16,
            sliding_window=32,
            query_pre_attn_scalar=16,
            layer_types=["sliding_attention", "full_attention"],
        )
    )


def _vit(labels: int) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=16,
            patch_size=4,
            num_channels=3,
            num_labels=labels,
        )
    )


def _mobilenet(labels: int) -> Any:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(
        MobileNetV2Config(
            num_channels=3, image_size=32, depth_multiplier=0.35, min_depth=8, num_labels=labels
        )
    )


TEXT_CLASSIFIERS: dict[str, Callable[[int], Any]] = {"bert": _bert, "modernbert": _modernbert}
DECODERS: dict[str, Callable[[], Any]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
}
IMAGE_CLASSIFIERS: dict[str, Callable[[int], Any]] = {"vit": _vit, "mobilenetv2": _mobilenet}


def checkpoint(family: str, directory: Path, seed: int = 0) -> Path:
    """Write a random-weight checkpoint with its preprocessor; families as listed above.

    Classifiers know the three LABELS; "bert-encoder" is a bare encoder for embeddings.
    """
    import torch

    torch.manual_seed(seed)
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    if family in TEXT_CLASSIFIERS:
        model = TEXT_CLASSIFIERS[family](len(LABELS))
        model.config.update(names)
        tokenizer("encoder").save_pretrained(directory)
    elif family == "bert-encoder":
        model = _bert_encoder()
        tokenizer("encoder").save_pretrained(directory)
    elif family in DECODERS:
        model = DECODERS[family]()
        tokenizer("decoder").save_pretrained(directory)
    else:
        model = IMAGE_CLASSIFIERS[family](len(LABELS))
        model.config.update(names)
        _image_processor(model.config.image_size).save_pretrained(directory)
    _spread(model)
    _settle(model)
    model.save_pretrained(directory)
    return directory


def _spread(model: Any) -> None:
    """Larger random weights, so that outputs differ between inputs and units matter."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "conv" not in name:
                parameter.mul_(4)


def _settle(model: Any) -> None:
    """Batch statistics of noise: with untrained ones, a deep network answers zero to anything."""
    import torch

    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    size = model.config.image_size
    with torch.no_grad():
        model.train()(torch.randn(16, 3, size, size))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _image_processor(size: int) -> Any:
    from transformers import ViTImageProcessor

    return ViTImageProcessor(size={"height": size, "width": size})

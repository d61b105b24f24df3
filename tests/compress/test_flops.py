"""Multiply-accumulates are those that the sizes of a module tell."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from exporter.compress.flops import multiply_accumulates, workload


class _Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.pointwise = nn.Conv2d(8, 16, 1, bias=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        left: torch.Tensor = self.pointwise(self.depthwise(pixel_values))
        return left


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_decoder_costs_its_matrices_and_its_attention(attention: str) -> None:
    config = transformers.Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=24,
    )
    module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    feeds = workload(module, batch=2, length=100)
    assert feeds["input_ids"].shape == (2, 24)  # as many tokens as fit
    layer = 32 * 64 * 2 + 32 * 32 * 2 + 3 * 32 * 40
    scores_and_sums = 2 * 2 * 4 * 24 * 24 * 16
    expected = 2 * 24 * (3 * layer + 32 * 64) + 3 * scores_and_sums
    assert multiply_accumulates(module, feeds) == expected


def test_a_depthwise_convolution_costs_one_channel_each() -> None:
    module = _Convolutions()
    counted = multiply_accumulates(module, {"pixel_values": torch.zeros(1, 8, 10, 10)})
    assert counted == 100 * (8 * 9 + 8 * 16)


def test_counting_leaves_the_module_as_it_was() -> None:
    module = _Convolutions().train()
    multiply_accumulates(module, {"pixel_values": torch.zeros(1, 8, 4, 4)})
    assert module.training

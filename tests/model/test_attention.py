import logging
import sys
import types
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoAttnProcessor2_0,
    HunyuanVideoTransformer3DModel,
)
from hypothesis import given
from hypothesis import strategies as st

from hvkf.errors import BadInput
from hvkf.model import attention
from hvkf.model.attention import VarlenProcessor, apply_attention, choose_backend, segment_borders

from .conftest import relative_difference

Transformer = HunyuanVideoTransformer3DModel


def plain_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    borders_q: torch.Tensor,
    borders_k: torch.Tensor,
    longest_q: int,
    longest_k: int,
) -> torch.Tensor:
    """flash_attn_varlen_func's contract in plain PyTorch: softmax within each segment."""
    assert torch.equal(borders_q, borders_k)
    assert borders_q.dtype == torch.int32
    borders = borders_q.tolist()
    assert borders[-1] == len(query)
    assert max(end - start for start, end in pairwise(borders)) <= longest_q
    mixed = torch.empty_like(query)
    for start, end in pairwise(borders):
        scores = torch.einsum("qhd,khd->hqk", query[start:end], key[start:end])
        shares = (scores / query.shape[-1] ** 0.5).softmax(dim=-1)
        mixed[start:end] = torch.einsum("hqk,khd->qhd", shares, value[start:end])
    return mixed


def plain_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, borders: torch.Tensor, longest: int
) -> torch.Tensor:
    return plain_varlen(query, key, value, borders, borders, longest, longest)


def processors_of(model: Any) -> list[Any]:
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    return [block.attn.processor for block in blocks]


@pytest.fixture
def batch(transformer_inputs: dict[str, Any]) -> dict[str, Any]:
    """Three rows with few, many and all text tokens counting."""
    mask = torch.zeros(3, 256, dtype=torch.bool)
    for row, length in enumerate((3, 200, 256)):
        mask[row, :length] = True
    repeated = {
        name: torch.cat([value, value * 0.5 if value.is_floating_point() else value, value])
        for name, value in transformer_inputs.items()
        if isinstance(value, torch.Tensor)
    }
    return {**repeated, "encoder_attention_mask": mask, "return_dict": False}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_borders_part_what_counts_from_the_padding(lengths: list[int]) -> None:
    mask = torch.arange(9)[None, :] < torch.tensor(lengths)[:, None]
    borders = segment_borders(mask).tolist()
    assert borders[0] == 0
    assert borders[2::2] == [9 * (row + 1) for row in range(len(lengths))]
    assert [end - 9 * row for row, end in enumerate(borders[1::2])] == lengths


def test_the_varlen_processor_equals_sdpa(transformer: Transformer, batch: dict[str, Any]) -> None:
    with torch.inference_mode():
        expected = transformer(**batch)[0]
        for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
            block.attn.processor = VarlenProcessor(plain_kernel)
        actual = transformer(**batch)[0]
    assert relative_difference(actual, expected) < 1e-5


def test_padding_does_not_reach_the_output(transformer: Transformer, batch: dict[str, Any]) -> None:
    for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
        block.attn.processor = VarlenProcessor(plain_kernel)
    changed = batch["encoder_hidden_states"].clone()
    changed[0, 3:] = 7.0
    with torch.inference_mode():
        expected = transformer(**batch)[0]
        actual = transformer(**{**batch, "encoder_hidden_states": changed})[0]
    assert relative_difference(actual, expected) < 1e-6


def test_the_flash_setting_puts_flash_attns_kernel_into_every_block(
    transformer: Transformer,
    batch: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    package = types.ModuleType("flash_attn")
    package.flash_attn_varlen_func = plain_varlen  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(attention, "choose_backend", lambda *_, **__: "flash")
    with torch.inference_mode():
        expected = transformer(**batch)[0]
        with caplog.at_level(logging.INFO):
            assert apply_attention(transformer, "auto") == "flash"
        actual = transformer(**batch)[0]
    assert relative_difference(actual, expected) < 1e-5
    assert "flash (asked for: auto)" in caplog.text
    processors = processors_of(transformer)
    assert all(isinstance(processor, VarlenProcessor) for processor in processors)


def test_sdpa_is_diffusers_own_processor(transformer: Transformer) -> None:
    assert apply_attention(transformer, "auto") == "sdpa"
    for processor in processors_of(transformer):
        assert isinstance(processor, HunyuanVideoAttnProcessor2_0)


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "expected"),
    [
        ("cpu", torch.bfloat16, True, "sdpa"),
        ("cuda", torch.bfloat16, False, "sdpa"),
        ("cuda", torch.float32, True, "sdpa"),
        ("cuda", torch.bfloat16, True, "flash"),
        ("cuda:1", torch.float16, True, "flash"),
    ],
)
def test_auto_takes_flash_where_it_can_compute(
    device: str,
    dtype: torch.dtype,
    installed: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "_is_installed", lambda name: installed)
    assert choose_backend("auto", device, dtype) == expected


def test_a_kernel_that_is_not_installed_is_refused_with_the_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "_is_installed", lambda name: False)
    with pytest.raises(BadInput, match=r"pip install 'hvkf\[flash\]'"):
        choose_backend("flash", "cuda")
    with pytest.raises(BadInput, match="pip install sageattention"):
        choose_backend("sage", "cuda")


def test_kernels_that_cannot_compute_what_is_asked_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "_is_installed", lambda name: True)
    with pytest.raises(BadInput, match="CUDA"):
        choose_backend("flash", "cpu")
    with pytest.raises(BadInput, match="16-bit"):
        choose_backend("sage", "cuda", torch.float32)
    with pytest.raises(BadInput, match="no gradients"):
        choose_backend("sage", "cuda", trains=True)
    with pytest.raises(BadInput, match="auto, sdpa, flash, sage"):
        choose_backend("xformers", "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flash_equals_sdpa_on_a_gpu(transformer: Transformer, batch: dict[str, Any]) -> None:
    pytest.importorskip("flash_attn")
    torch.nn.Module.to(transformer, "cuda", torch.bfloat16)
    inputs = {
        name: value.to("cuda", torch.bfloat16 if value.is_floating_point() else None)
        for name, value in batch.items()
        if isinstance(value, torch.Tensor)
    }
    with torch.inference_mode():
        apply_attention(transformer, "sdpa")
        expected = transformer(**inputs).sample
        apply_attention(transformer, "flash")
        actual = transformer(**inputs).sample
    assert relative_difference(actual, expected) < 2e-2

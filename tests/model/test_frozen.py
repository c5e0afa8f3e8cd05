"""Frozen weights, packed or waiting: how near, how small, and that gradients pass through them."""

import copy
import importlib.util
from typing import Any, get_args

import pytest
import torch

from hvkf.buckets import Bucket
from hvkf.errors import BadInput
from hvkf.model.frozen import FrozenLinear, hold_frozen
from hvkf.model.loading import load_transformer
from hvkf.model.lora import add_lora
from hvkf.settings.section import PackedFormat
from hvkf.settings.training import HparamsConfig
from hvkf.training.objective import batch_losses
from tests.estimate.batches import latent_batch
from tests.workspaces import TINY

CPU = torch.device("cpu")
HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not HAS_BITSANDBYTES, reason="needs bitsandbytes")
FORMATS: list[Any] = [
    pytest.param(name, marks=needs_bitsandbytes) if name == "nf4" else name
    for name in get_args(PackedFormat)
]
WAYS: list[dict[str, Any]] = [{"stored": "int8"}, {"waits": True}, {"stored": "fp8", "waits": True}]
# Largest relative error of a weight of normal numbers, and of what a tiny transformer answers.
OF_WEIGHT = {"fp8": 0.03, "int8": 0.01, "nf4": 0.1}
OF_OUTPUT = {"fp8": 0.02, "int8": 0.004, "nf4": 0.06}
BITS = {"fp8": 8, "int8": 8, "nf4": 4}


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Compare by the norm of the difference."""
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("stored", FORMATS)
def test_a_weight_is_near_and_as_small_as_its_bits(stored: PackedFormat) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 128).requires_grad_(False)
    layer.weight.normal_(0, 0.02)
    packed = FrozenLinear(layer, stored)

    assert 0 < relative(packed.whole(CPU), layer.weight) < OF_WEIGHT[stored]
    size = packed.weight.numel() * packed.weight.element_size()
    assert size * 8 == layer.weight.numel() * BITS[stored]


@pytest.mark.parametrize("stored", FORMATS)
def test_a_packed_layer_computes_as_one_with_the_unpacked_weight(stored: PackedFormat) -> None:
    torch.manual_seed(0)
    packed = FrozenLinear(torch.nn.Linear(64, 128).requires_grad_(False), stored)
    plain = torch.nn.Linear(64, 128).requires_grad_(False)
    plain.weight.copy_(packed.whole(CPU))
    plain.bias.copy_(packed.bias)
    given = torch.randn(3, 5, 64, requires_grad=True)
    grads: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in (packed, plain):
        given.grad = None
        result = layer(given)
        result.square().sum().backward()
        assert given.grad is not None
        grads.append((result.detach(), given.grad.clone()))

    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_but_the_layer_is_kept_for_the_backward_pass(way: dict[str, Any]) -> None:
    layer = FrozenLinear(torch.nn.Linear(64, 128).requires_grad_(False), **way)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(torch.randn(3, 64, requires_grad=True)).sum()
    assert not [tensor for tensor in kept if tensor.numel() >= 64 * 128]


@pytest.mark.parametrize("stored", [None, *FORMATS])
def test_a_layer_whose_weight_waits_computes_the_same_bits(stored: PackedFormat | None) -> None:
    torch.manual_seed(0)
    plain: torch.nn.Linear = torch.nn.Linear(64, 128).requires_grad_(False)
    waiting = FrozenLinear(plain, stored, waits=True)
    if stored is not None:
        plain = FrozenLinear(plain, stored)
    given = torch.randn(3, 5, 64, requires_grad=True)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in (plain, waiting):
        given.grad = None
        result = layer(given)
        result.square().sum().backward()
        assert given.grad is not None
        found.append((result.detach(), given.grad.clone()))

    assert found[0][0].equal(found[1][0])
    assert found[0][1].equal(found[1][1])


def test_a_weight_that_waits_stays_where_it_is_and_is_copied_each_time() -> None:
    layer = FrozenLinear(torch.nn.Linear(64, 128).requires_grad_(False), waits=True)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert layer.whole(CPU).data_ptr() != layer.whole(CPU).data_ptr() != 0
    layer.to("meta")  # the device with the least memory
    assert layer.bias.is_meta
    assert torch.isfinite(layer.whole(CPU)).all()


@pytest.mark.parametrize("stored", FORMATS)
def test_a_transformer_answers_nearly_the_same_and_its_lora_still_learns(
    stored: PackedFormat,
) -> None:
    transformer = load_transformer(TINY, dtype=torch.float32, trains=True)
    add_lora(transformer, rank=4, alpha=4, init=False)
    packed = copy.deepcopy(transformer)
    hold_frozen(packed, stored)
    batch = latent_batch(Bucket.parse("64x64x17"), 1, transformer)
    answers: list[torch.Tensor] = []

    def losses_of(model: Any) -> torch.Tensor:
        def remember(**inputs: Any) -> Any:
            answer = model(**inputs)
            answers.append(answer[0].detach())
            return answer

        losses = batch_losses(remember, batch, dtype=torch.float32, guidance=1, weighting="none")
        return losses.mean()

    losses_of(transformer).backward()
    losses_of(packed).backward()

    assert 0 < relative(answers[1], answers[0]) < OF_OUTPUT[stored]
    exact, found = (
        torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
        for model in (transformer, packed)
    )
    assert relative(found, exact) < 4 * OF_OUTPUT[stored]
    layers = [layer for layer in packed.modules() if isinstance(layer, FrozenLinear)]
    assert len(layers) == sum(
        type(layer) is torch.nn.Linear and ".lora_" not in name
        for name, layer in transformer.named_modules()
        if name.startswith(("transformer_blocks", "single_transformer_blocks"))
    )


def test_weights_that_wait_are_not_compiled() -> None:
    with pytest.raises(ValueError, match="weights_in_main_memory or compile_blocks, not both"):
        HparamsConfig(weights_in_main_memory=True, compile_blocks=True)


@pytest.mark.skipif(HAS_BITSANDBYTES, reason="bitsandbytes is there")
def test_nf4_without_bitsandbytes_is_refused_with_the_fix() -> None:
    with pytest.raises(BadInput, match=r"pip install 'hvkf\[bnb\]', or take int8 or fp8"):
        FrozenLinear(torch.nn.Linear(64, 64).requires_grad_(False), "nf4")

import json

import pytest
import torch
from safetensors.torch import load, save

from hvkf.records import canonical_json
from hvkf.training.optimizers import make_optimizer
from hvkf.training.state import (
    load_optimizer,
    load_scheduler_state,
    optimizer_state,
    scheduler_state,
)

NAMES = ["one.lora_A.weight", "two.weight"]


def make_weights(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 8), (8,)]
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes
    ]


def names_of(weights: list[torch.nn.Parameter]) -> dict[torch.Tensor, str]:
    return dict(zip(weights, NAMES, strict=True))


def step(optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter], number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
    optimizer.step()


@pytest.mark.parametrize("name", ["adam", "adamw", "optimi-adamw", "optimi-stableadamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimizer_goes_on_exactly_from_its_stored_state(name: str, dtype: torch.dtype) -> None:
    weights = make_weights(dtype)
    optimizer = make_optimizer(name, weights, 1e-2, ("betas=(0.9, 0.95)",))
    for number in range(3):
        step(optimizer, weights, number)
    tensors, values = optimizer_state(optimizer, names_of(weights))
    stored = save(tensors), canonical_json(values)

    again = make_weights(dtype)
    for weight, trained in zip(again, weights, strict=True):
        weight.data.copy_(trained.data)
    resumed = make_optimizer(name, again, 9.9, ("betas=(0.9, 0.95)",))
    names = names_of(again)
    load_optimizer(resumed, names, load(stored[0]), json.loads(stored[1]))
    tensors, values = optimizer_state(resumed, names)
    assert (save(tensors), canonical_json(values)) == stored
    for number in range(3, 6):
        step(optimizer, weights, number)
        step(resumed, again, number)
    for weight, other in zip(weights, again, strict=True):
        assert weight.equal(other)


def test_state_of_another_type_than_its_weight_stays_as_it_is() -> None:
    weight = torch.nn.Parameter(torch.zeros(3, 4, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    optimizer.state[weight] = {"rows": torch.full((3,), 1 / 3), "count": 7}
    tensors, values = optimizer_state(optimizer, {weight: "w"})
    optimizer.state.clear()
    load_optimizer(optimizer, {weight: "w"}, tensors, values)
    assert optimizer.state[weight]["rows"].equal(torch.full((3,), 1 / 3))
    assert optimizer.state[weight]["count"] == 7


@pytest.mark.parametrize("name", ["constant_with_warmup", "cosine_with_restarts", "polynomial"])
def test_a_schedule_goes_on_from_its_stored_state(name: str) -> None:
    from diffusers.optimization import get_scheduler

    def make() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.5)
        scheduler = get_scheduler(
            name, optimizer, num_warmup_steps=3, num_training_steps=20, num_cycles=2
        )
        return optimizer, scheduler

    def rates(
        optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler
    ) -> list[float]:
        found: list[float] = []
        for _ in range(8):
            optimizer.step()
            scheduler.step()
            found.append(float(scheduler.get_last_lr()[0]))
        return found

    optimizer, scheduler = make()
    rates(optimizer, scheduler)
    stored = canonical_json(scheduler_state(scheduler))
    other_optimizer, other = make()
    load_scheduler_state(other, json.loads(stored))
    assert rates(other_optimizer, other) == rates(optimizer, scheduler)

import pytest
import torch
from diffusers.training_utils import EMAModel

from hvkf.training.ema import MovingAverage


def walk(weight: torch.nn.Parameter, step: int) -> None:
    with torch.no_grad():
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(step)))


@pytest.mark.parametrize("interval", [1, 3])
def test_the_average_is_diffusers(interval: int) -> None:
    weight = torch.nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(0)))
    own = MovingAverage({"w": weight}, decay=0.99, interval=interval)
    theirs = EMAModel([weight], decay=0.99)
    for step in range(1, 1200):
        walk(weight, step)
        own.update(step)
        if step % interval == 0:
            theirs.optimization_step = step - 1
            theirs.step([weight])
    torch.testing.assert_close(own.shadow["w"], theirs.shadow_params[0], rtol=1e-4, atol=1e-4)
    assert own.decay_at(1) == 0.0
    assert own.decay_at(5000) == 0.99


def test_the_average_of_half_precision_weights_keeps_small_updates() -> None:
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    average = MovingAverage({"w": weight}, decay=0.99)
    average.update(1)
    with torch.no_grad():
        weight.add_(0.0078125)
    for step in range(2000, 2100):
        average.update(step)
    assert average.shadow["w"].dtype == torch.float32
    assert average.shadow["w"][0].item() == pytest.approx(1 + 0.0078125 * (1 - 0.99**100), rel=1e-5)


def test_weights_come_back_exactly_after_the_average_stood_in_their_place() -> None:
    weight = torch.nn.Parameter(torch.randn(9, dtype=torch.bfloat16))
    average = MovingAverage({"w": weight}, decay=0.99)
    before = weight.detach().clone()
    average.shadow["w"].fill_(2.5)
    with average.in_place():
        assert weight.eq(2.5).all()
    assert weight.equal(before)


def test_an_average_goes_on_from_a_saved_one_exactly() -> None:
    weight = torch.nn.Parameter(torch.zeros(9))
    first = MovingAverage({"w": weight}, decay=0.99)
    for step in range(1, 5):
        walk(weight, step)
        first.update(step)
    second = MovingAverage({"w": weight}, decay=0.99)
    second.load({name: shadow.clone() for name, shadow in first.shadow.items()})
    walk(weight, 5)
    first.update(5)
    second.update(5)
    assert first.shadow["w"].equal(second.shadow["w"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_averaging_all_weights_at_once_gives_the_bits_of_one_after_the_other(
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        str(size): torch.nn.Parameter(torch.randn(size, generator=generator).to(dtype))
        for size in (1, 7, 64, 1000)
    }
    average = MovingAverage(weights, decay=0.99)
    expected = {name: weight.detach().float().clone() for name, weight in weights.items()}
    for step in range(1, 30):
        for weight in weights.values():
            walk(weight, step)
        average.update(step)
        for name, shadow in expected.items():
            shadow.lerp_(weights[name].detach().float(), 1.0 - average.decay_at(step))
        assert all(average.shadow[name].equal(expected[name]) for name in weights)

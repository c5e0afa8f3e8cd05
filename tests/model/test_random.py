import torch

from hvkf.model.random import draw_normal, generator_for


def test_a_rows_noise_depends_on_its_own_seed_only() -> None:
    alone = draw_normal([2, 3], [generator_for(7, "noise", "b")])
    together = draw_normal([2, 3], [generator_for(7, "noise", key) for key in ("a", "b", "c")])
    assert torch.equal(alone[0], together[1])
    assert not torch.equal(together[0], together[1])


def test_noise_is_standard_normal() -> None:
    noise = draw_normal([10_000], [generator_for(1)])
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 1) < 0.05

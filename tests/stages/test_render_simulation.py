"""Workers that die, dawdle, freeze and start twice: every row once, or aside with its reason."""

import pytest

from tests.stages.simulated_workers import World, simulate


@pytest.mark.parametrize("seed", [0, 1])
def test_every_row_is_rendered_once_or_set_aside_and_little_work_is_wasted(seed: int) -> None:
    world = World(num_workers=40, num_rows=4000, bad_rows=0.005, frozen=0.02, seed=seed)
    figures = simulate(world)
    assert figures["deaths"] > 0
    assert figures["stragglers"] > 0
    assert figures["duplicated_starts"] > 0
    assert figures["frozen"] > 0
    assert figures["bad_rows"] > 0
    assert figures["lost"] == figures["rendered_twice"] == 0
    assert figures["bad_rows_not_set_aside"] == figures["good_rows_set_aside"] == 0
    assert figures["rendered_once"] + figures["set_aside"] == figures["recorded"] == 4000
    assert 0 < figures["wasted_share"] < 0.02


def test_the_simulation_sees_work_that_is_done_twice() -> None:
    """Where every worker freezes for longer than its claims last, much is rendered again."""
    world = World(num_workers=40, num_rows=800, frozen=1.0, duplicates=1.0, deaths=0.0, seed=2)
    figures = simulate(world)
    assert figures["wasted_share"] > 0.02
    assert figures["lost"] == figures["rendered_twice"] == 0

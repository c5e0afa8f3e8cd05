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


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_workers_are_killed_all_the_time_no_good_row_is_set_aside(seed: int) -> None:
    """Nine parts of ten are killed amid a row before they end."""
    world = World(
        num_workers=20, num_rows=600, rows_per_part=4, deaths=0.9, bad_rows=0.01, seed=seed
    )
    figures = simulate(world)
    assert figures["deaths"] > 100
    assert figures["lost"] == figures["rendered_twice"] == figures["good_rows_set_aside"] == 0
    assert figures["bad_rows_not_set_aside"] == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_a_row_that_ends_its_worker_each_time_is_set_aside_in_the_end(seed: int) -> None:
    world = World(
        num_workers=20, num_rows=1000, deaths=0.3, crashers=0.01, killers=0.005, seed=seed
    )
    figures = simulate(world)
    assert figures["crashers"] > 0
    assert figures["killers"] > 0
    assert figures["lost"] == figures["rendered_twice"] == 0
    assert figures["bad_rows_not_set_aside"] == figures["good_rows_set_aside"] == 0


def test_the_simulation_sees_work_that_is_done_twice() -> None:
    """Where every worker freezes for longer than its claims last, much is rendered again."""
    world = World(num_workers=40, num_rows=800, frozen=1.0, duplicates=1.0, deaths=0.0, seed=2)
    figures = simulate(world)
    assert figures["wasted_share"] > 0.02
    assert figures["lost"] == figures["rendered_twice"] == 0

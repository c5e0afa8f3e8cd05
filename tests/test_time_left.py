"""How long a job still takes: by all of its work, and nothing before that is known."""

import pytest

from hvkf.time_left import MIN_ELAPSED_S, TimeLeft, duration


def event(done: int, total: int, **more: int) -> dict[str, int]:
    return {"done": done, "total": total, **more}


def test_nothing_is_said_before_enough_is_known() -> None:
    left = TimeLeft(1)
    assert left.told(0.0) == ""
    left.see(0, event(0, 1000), 0.0)
    left.see(0, event(15, 1000), MIN_ELAPSED_S / 2)
    assert left.told(MIN_ELAPSED_S / 2) == "", "the first seconds are no pace"
    left.see(0, event(20, 1000), MIN_ELAPSED_S)
    assert left.told(MIN_ELAPSED_S) == "about 24 min"
    slow = TimeLeft(1)
    slow.see(0, event(0, 1000), 0.0)
    slow.see(0, event(2, 1000), 60.0)
    assert slow.told(60.0) == "", "two units of a thousand are no pace"
    few = TimeLeft(1)
    few.see(0, event(0, 4), 0.0)
    few.see(0, event(1, 4), 60.0)
    assert few.told(60.0) == "about 3 min", "a quarter of all is"


def test_parts_that_nobody_has_begun_are_work_too() -> None:
    """Renders go in turns of few parts: a turn's last seconds are not those of the job."""
    left = TimeLeft(10)
    left.see(0, event(0, 100, parts=1), 0.0)
    left.see(0, event(98, 100, parts=1), 98.0)
    assert left.told(98.0) == "about 15 min"
    left.see(0, event(100, 100, parts=1), 100.0)
    left.see(0, event(0, 100, parts=1), 105.0)  # the next turn's worker has the same number
    left.see(0, event(50, 100, parts=1), 150.0)
    assert left.units() == (150, 1000)
    assert left.rate(150.0) == 1.0
    assert left.told(150.0) == "about 14 min"


def test_pods_that_are_to_start_count_by_those_that_have() -> None:
    left = TimeLeft(6)
    for worker in (0, 1):
        left.see(worker, event(0, 100), 0.0)
        left.see(worker, event(100, 100), 100.0)
    assert left.units() == (200, 600)
    assert left.told(100.0) == "about 3 min", "4 more, two at a time"


def test_an_items_last_piece_is_not_its_end() -> None:
    """A render's steps take seconds; decoding and storing the video behind them took minutes."""
    left = TimeLeft(1)
    left.see(0, event(0, 40, whole=0), 0.0)
    left.see(0, event(20, 40, whole=0), 60.0)
    assert left.told(60.0) == ""
    left.see(0, event(20, 40, whole=1), 240.0)
    assert left.told(240.0) == "about 4 min"


def test_what_was_done_before_is_no_speed() -> None:
    left = TimeLeft(1)
    left.see(0, event(900, 1000, resumed=900), 0.0)
    left.see(0, event(910, 1000, resumed=900), 100.0)
    assert left.told(100.0) == "about 15 min"
    left.see(0, event(905, 1000, resumed=905), 200.0)  # started again after its last checkpoint
    left.see(0, event(915, 1000, resumed=905), 300.0)
    assert left.rate(300.0) == pytest.approx(20 / 300)


def test_work_that_was_lost_is_done_again() -> None:
    left = TimeLeft(1)
    left.see(0, event(0, 100), 0.0)
    left.see(0, event(90, 100), 90.0)
    left.see(0, event(1, 100), 100.0)
    assert left.units() == (1, 100)


def test_when_all_is_done_no_time_is_left_to_be_told() -> None:
    left = TimeLeft(1)
    left.see(0, event(0, 100), 0.0)
    left.see(0, event(100, 100), 100.0)
    assert left.told(100.0) == ""


def test_a_pace_that_falls_is_believed() -> None:
    left = TimeLeft(1)
    left.see(0, event(0, 100), 0.0)
    left.see(0, event(90, 100), 90.0)
    assert left.told(90.0) == "under a minute"
    assert left.told(900.0) == "about 2 min", "nothing has come for minutes"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(2, "under a minute"), (100, "about 2 min"), (3600, "about 1 h 0 min"),
     (9900, "about 2 h 45 min")],
)  # fmt: skip
def test_times_are_written_no_finer_than_they_are_known(seconds: float, words: str) -> None:
    assert duration(seconds) == words

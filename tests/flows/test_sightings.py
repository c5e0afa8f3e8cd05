"""The figures of a running job: items, rate, time left, failures, and the table of parts."""

from flows.sightings import MAX_ROWS, Sightings


def event(done: int, total: int, failed: int = 0) -> dict[str, object]:
    return {"done": done, "total": total, "note": "clip.mp4", "failed": failed}


def test_workers_add_up_to_a_rate_and_the_time_left() -> None:
    seen = Sightings([0, 1])
    assert seen.summary(0.0) == (0.0, "waiting for the first sign of the workers")
    seen.see(0, event(0, 100), 0.0)
    seen.see(1, event(0, 100), 0.0)
    seen.see(0, event(40, 100), 50.0)
    seen.see(1, event(20, 100, failed=3), 50.0)
    seen.see_pending([1])
    percent, sentence = seen.summary(50.0)
    assert percent == 30.0
    assert sentence == (
        "60 of 200 items, 1.2 per second, about 2 min left before the commit, 3 failed, "
        "1 of 2 parts done"
    )


def test_parts_that_were_done_before_are_no_work() -> None:
    seen = Sightings([0, 1, 2, 3], pending=[3])
    seen.see(0, event(0, 100), 0.0)
    seen.see(0, event(50, 100), 100.0)
    percent, sentence = seen.summary(100.0)
    assert percent == 50.0
    assert sentence.startswith("50 of 100 items, 0.5 per second, about 2 min left")
    assert sentence.endswith("3 of 4 parts done")


def test_at_the_end_all_is_done_and_no_time_is_left() -> None:
    seen = Sightings([0])
    seen.see(0, event(0, 2), 0.0)
    seen.see(0, event(1, 2, failed=1), 100.0)
    seen.see_pending([])
    percent, sentence = seen.summary(100.0)
    assert percent == 100.0, "one failed, and the part is done"
    assert " left" not in sentence


def test_the_table_lists_workers_then_parts_to_do_and_stays_short() -> None:
    seen = Sightings(range(MAX_ROWS + 50))
    seen.see_pending([70])
    seen.see(3, event(1, 2), 0.0)
    rows = seen.rows()
    assert [(row["what"], row["state"]) for row in rows[:3]] == [
        ("worker 3", "running"),
        ("part 70", "to do"),
        ("part 0", "done"),
    ]
    assert rows[-1]["what"] == "and 50 more parts"
    assert len(rows) == MAX_ROWS + 2


def test_what_is_counted_is_named() -> None:
    """A render of two rows said "8 of 8 items": it counts their steps."""
    seen = Sightings([0])
    seen.see(0, {**event(3, 8), "unit": "steps"}, 0.0)
    assert seen.summary(0.0)[1].startswith("3 of 8 steps")

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from hvkf.ahead import ahead


def num_threads() -> int:
    return sum(thread.name == "ahead" for thread in threading.enumerate())


def test_all_comes_in_order_and_the_thread_ends() -> None:
    assert list(ahead(range(50))) == list(range(50))
    assert num_threads() == 0


def test_a_fault_comes_where_its_item_would_have() -> None:
    def faulty() -> Iterator[int]:
        yield 1
        raise ValueError("damaged")

    found = ahead(faulty())
    assert next(found) == 1
    with pytest.raises(ValueError, match="damaged"):
        next(found)
    assert num_threads() == 0


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_than_the_depth_is_fetched_ahead_and_closing_ends_the_thread(depth: int) -> None:
    fetched: list[int] = []

    def endless() -> Iterator[int]:
        number = 0
        while True:
            fetched.append(number)
            yield number
            number += 1

    with closing(ahead(endless(), depth)) as found:
        assert next(found) == 0
        deadline = time.monotonic() + 10
        while len(fetched) < depth + 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert fetched == list(range(depth + 2))
    assert num_threads() == 0

"""Claims: at most one is alive for each row, whatever ends the workers."""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvkf.crashes import note_crash
from hvkf.errors import Stopped
from hvkf.stages.render_claims import (
    CLAIMS,
    Busy,
    Claims,
    Owner,
    SetAside,
    forget_claims,
    last_claim,
)
from hvkf.storage import FolderStore

TIMEOUT_S = 30


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def worker(store: FolderStore, clock: Clock, name: str) -> Claims:
    owner = Owner(name, f"machine of {name}", 1, 0.0, name)
    return Claims(store, life_s=60, max_tries=3, owner=owner, clock=clock)


def test_a_row_is_one_workers_until_its_claim_runs_out(tmp_path: Path) -> None:
    store, clock = FolderStore(tmp_path), Clock()
    one, two = worker(store, clock, "one"), worker(store, clock, "two")
    assert one.take("row") is None
    assert two.take("row") == Busy(1060.0)
    clock.now_s += 50
    assert one.renew() == ()
    clock.now_s += 50
    assert two.take("row") == Busy(1110.0)
    clock.now_s += 11
    assert two.take("row") is None
    assert one.renew() == ("row",)
    assert one.held == ()
    assert two.held == ("row",)


def test_a_claim_that_ran_out_unnoticed_is_taken_again_before_anyone_else_may(
    tmp_path: Path,
) -> None:
    store, clock = FolderStore(tmp_path), Clock()
    one, two = worker(store, clock, "one"), worker(store, clock, "two")
    assert one.take("row") is None
    clock.now_s += 61
    assert one.renew() == ()
    assert two.take("row") == Busy(1121.0)
    number, claim = last_claim(store, "row")
    assert claim is not None
    assert (number, claim.owner, claim.tries) == (2, "one", 0)


def test_a_renewal_and_the_end_of_its_row_do_not_cross(tmp_path: Path) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    class Slow(FolderStore):
        def put_new(self, path: str, data: bytes) -> None:
            if path.endswith("2.json"):
                begun.set()
                assert goes_on.wait(TIMEOUT_S)
            super().put_new(path, data)

    store, clock = Slow(tmp_path), Clock()
    one = worker(store, clock, "one")
    assert one.take("row") is None
    clock.now_s += 61
    renewing = threading.Thread(target=one.renew)
    renewing.start()
    assert begun.wait(TIMEOUT_S)
    ending = threading.Thread(target=one.end, args=("row", "done"))
    ending.start()
    goes_on.set()
    for thread in (renewing, ending):
        thread.join(TIMEOUT_S)
    number, claim = last_claim(store, "row")
    assert claim is not None
    assert (number, claim.ended, one.held) == (2, "done", ())


def test_a_row_that_fails_three_times_is_set_aside_with_the_last_reason(tmp_path: Path) -> None:
    store, clock = FolderStore(tmp_path), Clock()
    one = worker(store, clock, "one")
    for number in range(3):
        assert one.take("row") is None
        one.end("row", "failed", f"reason {number}")
    assert one.take("row") == SetAside("reason 2")
    forget_claims(store, "row")
    assert one.take("row") is None


def die_on_it(store: FolderStore, clock: Clock, name: str, *, together: bool = False) -> Claims:
    """Let a worker take the row, and fall silent for ever."""
    claims = worker(store, clock, name)
    assert claims.take("row", together=together) is None
    clock.now_s += 61
    return claims


def test_neither_a_stop_nor_a_killed_worker_is_a_try(tmp_path: Path) -> None:
    store, clock = FolderStore(tmp_path), Clock()
    one = worker(store, clock, "one")
    for _ in range(5):
        assert one.take("row") is None
        one.release_all()
    for number in range(5):
        die_on_it(store, clock, f"killed {number}")
    assert one.take("row") is None
    one.end("row", "failed", "reason")
    assert one.take("row") is None
    _, claim = last_claim(store, "row")
    assert claim is not None
    assert claim.tries == 1


def test_a_row_that_crashes_its_worker_three_times_is_set_aside(tmp_path: Path) -> None:
    store, clock = FolderStore(tmp_path), Clock()
    for number in range(3):
        die_on_it(store, clock, f"worker {number}")
        note_crash(store, f"worker {number}", "SIGSEGV")
    found = worker(store, clock, "another").take("row")
    assert found == SetAside("its worker crashed (SIGSEGV)")


def test_a_crash_that_is_noted_after_the_row_was_taken_again_counts(tmp_path: Path) -> None:
    store, clock = FolderStore(tmp_path), Clock()
    for number in range(3):
        die_on_it(store, clock, f"worker {number}")
    for number in range(3):
        note_crash(store, f"worker {number}", "SIGSEGV")
    assert isinstance(worker(store, clock, "another").take("row"), SetAside)


def test_a_crash_amid_a_batch_is_no_rows_try_and_each_is_alone_from_then_on(
    tmp_path: Path,
) -> None:
    store, clock = FolderStore(tmp_path), Clock()
    die_on_it(store, clock, "one", together=True)
    note_crash(store, "one", "SIGSEGV")
    two = worker(store, clock, "two")
    assert two.take("row", together=True) is None
    assert two.must_be_alone("row")
    two.end("row", "failed", "reason")
    _, claim = last_claim(store, "row")
    assert claim is not None
    assert claim.tries == 0


def test_a_row_on_which_ten_workers_ended_unwatched_is_set_aside(tmp_path: Path) -> None:
    store, clock = FolderStore(tmp_path), Clock()
    for number in range(9):
        die_on_it(store, clock, str(number))
    die_on_it(store, clock, "the tenth")
    found = worker(store, clock, "another").take("row")
    assert found == SetAside("10 workers ended without a word while they rendered it")


def test_a_claim_that_its_own_worker_took_again_is_no_death(tmp_path: Path) -> None:
    store, clock = FolderStore(tmp_path), Clock()
    one = worker(store, clock, "one")
    assert one.take("row") is None
    for _ in range(20):
        clock.now_s += 61
        assert one.renew() == ()
    one.end("row", "failed", "reason")
    assert one.take("row") is None


def test_a_stop_before_a_claim_was_created_leaves_another_workers_claim(tmp_path: Path) -> None:
    class Stopping(FolderStore):
        def put_new(self, path: str, data: bytes) -> None:
            FolderStore(tmp_path).put_new(path, b"")  # another was faster
            store.put(path, last.to_json())
            raise Stopped("told to stop")

    store, clock = FolderStore(tmp_path), Clock()
    others = worker(store, clock, "other")
    assert others.take("row") is None
    _, found = last_claim(store, "row")
    assert found is not None
    last = found
    forget_claims(store, "row")
    one = worker(Stopping(tmp_path), clock, "one")
    with pytest.raises(Stopped):
        one.take("row")
    one.release_all()
    assert last_claim(store, "row") == (1, last)


@pytest.mark.parametrize("is_written", [False, True])
def test_a_stop_while_a_claim_is_ended_leaves_none_open(tmp_path: Path, is_written: bool) -> None:
    told: list[str] = []

    class Stopping(FolderStore):
        def put(self, path: str, data: bytes) -> None:
            if is_written or told:
                super().put(path, data)
            if not told:
                told.append(path)
                raise Stopped("told to stop")

    one = worker(Stopping(tmp_path), Clock(), "one")
    assert one.take("row") is None
    with pytest.raises(Stopped):
        one.end("row", "failed", "reason")
    one.release_all()
    _, claim = last_claim(FolderStore(tmp_path), "row")
    assert claim is not None
    assert (claim.ended, one.held) == ("failed" if is_written else "released", ())


@pytest.mark.parametrize("name", [".DS_Store", "zzz.txt", "000001.json.bak", "~000009.json"])
def test_a_foreign_file_beside_claims_is_none_of_them(tmp_path: Path, name: str) -> None:
    store, clock = FolderStore(tmp_path), Clock()
    assert worker(store, clock, "one").take("row") is None
    store.put(f"{CLAIMS}/row/{name}", b"\0")
    assert worker(store, clock, "two").take("row") == Busy(1060.0)


def test_the_claim_of_a_process_of_this_machine_that_is_gone_is_free_at_once(
    tmp_path: Path,
) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from hvkf.stages.render_claims import Claims\n"
        "from hvkf.storage import FolderStore\n"
        "claims = Claims(FolderStore(Path(sys.argv[1])), life_s=3600, max_tries=3)\n"
        "assert claims.take('row') is None\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert ended.returncode == -9
    store = FolderStore(tmp_path)
    assert Claims(store, life_s=3600, max_tries=3).take("row") is None
    number, claim = last_claim(store, "row")
    assert number == 2
    assert claim is not None
    assert (claim.process, claim.tries) == (os.getpid(), 0)  # it was killed, not by the row


actions = st.lists(
    st.tuples(
        st.integers(0, 2), st.sampled_from(["take", "renew", "done", "failed", "die", "pass"])
    ),
    max_size=40,
)


@given(actions)
def test_never_do_two_workers_have_a_row_in_time(steps: list[tuple[int, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, clock = FolderStore(Path(folder)), Clock()
        workers = [worker(store, clock, str(n)) for n in range(3)]
        until_s = [0.0, 0.0, 0.0]
        for index, action in steps:
            claims = workers[index]
            if action == "take" and not claims.held:
                if claims.take("row") is None:
                    until_s[index] = clock.now_s + 60
            elif action == "renew":
                claims.renew()
                if claims.held:
                    until_s[index] = clock.now_s + 60
            elif action in ("done", "failed"):
                claims.end("row", "done" if action == "done" else "failed")
                until_s[index] = 0.0
            elif action == "die":
                workers[index] = worker(store, clock, f"{index} again")
                # What it held stays claimed until it runs out, but no one works on it.
                until_s[index] = 0.0
            else:
                clock.now_s += 25
            alive = [n for n, held in enumerate(workers) if held.held and clock.now_s < until_s[n]]
            assert len(alive) <= 1

"""Claims: at most one is alive for each row, whatever ends the workers."""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hvkf.stages.render_claims import Busy, Claims, Owner, SetAside, forget_claims, last_claim
from hvkf.storage import FolderStore

TIMEOUT_S = 30


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def worker(store: FolderStore, clock: Clock, name: str) -> Claims:
    owner = Owner(name, f"machine of {name}", 1, 0.0)
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


def test_a_stop_is_no_try_and_a_silent_death_is(tmp_path: Path) -> None:
    store, clock = FolderStore(tmp_path), Clock()
    one, two = worker(store, clock, "one"), worker(store, clock, "two")
    for _ in range(5):
        assert one.take("row") is None
        one.release_all()
    for _ in range(3):
        assert one.take("row") is None
        one = worker(store, clock, "another")
        clock.now_s += 61
    assert two.take("row") == SetAside("its worker ended without a word")


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
    assert (claim.process, claim.tries) == (os.getpid(), 1)


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

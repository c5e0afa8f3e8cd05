"""SIGTERM at any moment of any stage: it ends within seconds, and the same command goes on."""

import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from hvkf import stops
from hvkf.errors import Stopped
from hvkf.stages.render_claims import CLAIMS, ClaimRecord
from hvkf.storage import FolderStore
from tests.drills.killing import CHILD_TIMEOUT_S, run_and_count, stored_bytes
from tests.drills.states import MADE, STAGES, chain_config, prepare_states
from tests.drills.test_kills import stage_work

NUM_MOMENTS = 10
MOST_OF_IT = 0.7
"""One run may be faster than another: so much of the undisturbed time is still within it."""
ENDS_WITHIN_S = 20.0
"""Of a machine that other tests use as well; alone it is a second."""


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return prepare_states(tmp_path_factory.mktemp("stops"))


def begin(root: Path, work: Callable[[FolderStore], None]) -> int:
    """Do a stage's work in a child that takes SIGTERM as the command line does."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(CHILD_TIMEOUT_S)
            stops.listen()
            work(FolderStore(root))
            code = 0
        except Stopped as stop:
            code = stop.exit_code
        except Exception as error:
            traceback.print_exc()
            if isinstance(stops.cause_of_end(error), Stopped):
                code = Stopped.exit_code
        finally:
            # Not sys.exit: the child must not run the test session's cleanup.
            os._exit(code)
    return child


def end_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_stopped_at_ten_moments_ends_with_the_same_bytes(
    stage: str, states: dict[str, Path], tmp_path: Path
) -> None:
    config = chain_config(tmp_path, states["after"].parent / "data" / "metadata.csv")
    work = stage_work(stage, config)
    expected = stored_bytes(states["after"], MADE[stage])
    assert expected
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(states[stage], undisturbed)
    begun_s = time.monotonic()
    assert end_of(begin(undisturbed, work)) == 0
    length_s = time.monotonic() - begun_s
    draw = random.Random(stage)
    codes = []
    for number in range(NUM_MOMENTS):
        root = tmp_path / str(number)
        shutil.copytree(states[stage], root)
        child = begin(root, work)
        time.sleep(draw.uniform(0.02, MOST_OF_IT * length_s))
        os.kill(child, signal.SIGTERM)
        told_s = time.monotonic()
        codes.append(end_of(child))
        assert time.monotonic() - told_s < ENDS_WITHIN_S
        _check_claims(FolderStore(root))
        run_and_count(root, work)
        assert stored_bytes(root, MADE[stage]).items() >= expected.items(), number
        shutil.rmtree(root)
    assert set(codes) <= {0, 143, -signal.SIGTERM}
    assert 143 in codes, codes


def _check_claims(store: FolderStore) -> None:
    """No claim of a stopped worker is open, and none counts as a try."""
    for path in store.list(CLAIMS):
        claim = ClaimRecord.from_json(store.read(path))
        assert claim.ended in ("done", "released")
        assert claim.tries == 0

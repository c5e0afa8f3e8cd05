"""A damaged record in a workspace: each reader says one sentence, and hints stop nothing."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hvkf.cli import stage_module
from hvkf.config import Config
from hvkf.errors import HvkfError
from hvkf.garbage import find_garbage
from hvkf.jobs.turns import LocalOrder
from hvkf.ledger import read_plan
from hvkf.nightly import Night
from hvkf.registry import find_registered
from hvkf.stages.evaluate_gate import gate
from hvkf.stages.pictures import draw
from hvkf.stages.previews import read_preview
from hvkf.stages.render_cost import PastRuns
from hvkf.storage import FolderStore
from hvkf.stored_kinds import KINDS, Kind, kind_of
from tests.whole_workspace import STAGES, make_whole_workspace

BAD = [b"", b"{", b'{"history":[]}', b"\xff\xfe"]
RECORDS = [kind for kind in KINDS if kind.check in ("record", "table", "lines")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return make_whole_workspace(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def store(whole: Config, tmp_path: Path) -> FolderStore:
    shutil.copytree(whole.workspace, tmp_path / "copy")
    return FolderStore(tmp_path / "copy")


def paths_of(store: FolderStore, kind: Kind) -> list[str]:
    found = (file.relative_to(store.root).as_posix() for file in store.root.rglob("*"))
    return [path for path in found if kind_of(path) == kind]


def planned_and_committed(stage: str, config: Config, store: FolderStore) -> None:
    plan = stage_module(stage).plan(config, store)
    stage_module(stage).commit(plan, store)


def readers(config: Config, store: FolderStore) -> list[Callable[[], object]]:
    """All that reads records of a finished workspace without torch."""
    metrics = next(path for path in store.list("evals") if path.endswith("metrics.json"))
    plans = list(store.list("plans"))
    stages = [*STAGES, "render"]
    return [
        *(lambda stage=stage: planned_and_committed(stage, config, store) for stage in stages),
        *(lambda p=p: read_plan(store, p.split("/")[1], Path(p).stem) for p in plans),
        lambda: find_garbage(store, 0),
        lambda: find_registered(store, "house"),
        lambda: gate(config.gate, store, metrics),
        lambda: draw("train", "runs/test/losses.jsonl", store),
        lambda: draw("evaluate", metrics, store),
        lambda: Night(config, store, "a test"),  # whose night is running
        lambda: PastRuns(store),
    ]


def test_the_readers_read_what_is_as_it_was_written(whole: Config, store: FolderStore) -> None:
    for ask in readers(whole, store):
        ask()


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        pytest.param(kind, BAD[number % len(BAD)], id=kind.name)
        for number, kind in enumerate(RECORDS)
    ],
)
def test_no_reader_of_a_damaged_record_ends_in_a_traceback(
    whole: Config, store: FolderStore, kind: Kind, bad: bytes
) -> None:
    asked = readers(whole, store)
    for path in paths_of(store, kind):
        store.put(path, bad)
    for ask in asked:
        with contextlib.suppress(HvkfError):  # any other exception fails the test
            ask()


def test_a_damaged_timing_note_is_dropped_with_a_warning(
    store: FolderStore, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = store.list("timings/render")
    shape = path.split("/")[2]
    assert PastRuns(store).knows(shape)
    store.put(path, store.read(path)[:-9])
    assert not PastRuns(store).knows(shape)
    assert f"{path} is damaged" in caplog.text


def test_a_damaged_preview_is_left_out_with_a_warning(
    store: FolderStore, caplog: pytest.LogCaptureFixture
) -> None:
    path = next(iter(store.list("previews")))
    store.put(path, b"no picture")
    assert read_preview(store, Path(path).stem) is None
    assert f"{path} is damaged" in caplog.text


@pytest.mark.parametrize("bad", ["{", '{"running": 1}', "[]", '{"running":null,"askers":[{}]}'])
def test_a_damaged_order_of_turns_begins_anew(
    tmp_path: Path, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "order.json"
    with LocalOrder(file) as order:
        file.write_text(bad)
        with order.turn(1, print):
            pass
    assert f"{file} is damaged" in caplog.text

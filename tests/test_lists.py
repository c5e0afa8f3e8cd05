"""The lists of runs and of renders: of finished work, of work that goes on, and amid damage."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hvkf import ledger
from hvkf.config import Config
from hvkf.errors import BadInput
from hvkf.nightly import NightRecord, Outcome, night_path
from hvkf.records import Plan, RunRecord
from hvkf.render_list import Render, list_renders
from hvkf.run_list import Run, list_runs
from hvkf.stages import render
from hvkf.stages.render_records import manifest_folder, row_failure
from hvkf.stages.render_work import SET_ASIDE, failure_record, put_record
from hvkf.storage import FolderStore, Store, open_store
from hvkf.training.cost import TrainTiming, timings_folder
from hvkf.training.runs import work_digest
from hvkf.uses import at_work
from tests.commands import run_command
from tests.finished_runs import write_checkpoint, write_run
from tests.s3_server import S3Service
from tests.stages.render_manifests import config_for, row, rows_of, write_images, write_manifest
from tests.whole_workspace import make_whole_workspace

LATER_S = 2_000_000_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which a run was trained, judged and promoted, and a manifest rendered."""
    return Path(make_whole_workspace(tmp_path_factory.mktemp("whole")).workspace)


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> FolderStore:
    """A copy of that workspace."""
    shutil.copytree(whole, tmp_path / "workspace")
    return FolderStore(tmp_path / "workspace")


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    open_store(str(tmp_path / "workspace"))
    return FolderStore(tmp_path / "workspace")


def of_run(store: Store, run_id: str) -> Run:
    (found,) = [run for run in list_runs(store).runs if run.run_id == run_id]
    return found


def begin(store: FolderStore, run_id: str, max_steps: int = 8) -> RunRecord:
    """Put the record of a run, as its first process does."""
    record = RunRecord(
        run_id=run_id, digest="0" * 32, settings={"hparams": {"max_train_steps": max_steps}}
    )
    store.put(f"runs/{run_id}/run.json", record.to_json())
    return record


def test_a_finished_chain_is_listed_with_its_figures(finished: FolderStore) -> None:
    found = list_runs(finished)
    (run,) = found.runs
    assert (run.run_id, run.state, run.steps, run.max_steps) == ("test", "done", 2, 2)
    result = json.loads(finished.read("runs/test/result.json"))
    assert (run.loss, run.validation_loss) == (result["loss"], result["validation_loss"])
    assert run.verdict == "no-verdict", "one held-out video gives none"
    assert run.in_use == ("house",)
    assert run.device_hours is not None
    assert 0 < run.device_hours < 0.1
    assert run.begun_at is not None
    assert run.ended_at is not None
    (made,) = list_renders(finished).renders
    assert (made.state, made.num_rows, made.num_rendered, made.num_failed) == ("done", 1, 1, 0)
    assert made.device_hours is not None
    assert 0 < made.device_hours < 0.1
    assert not made.is_quoted
    assert made.gallery == f"manifests/{made.name}/index.html"
    assert found.foreign == found.damaged == ()


def test_the_lists_of_s3_are_those_of_a_folder(finished: FolderStore, s3: S3Service) -> None:
    other = open_store(s3.new_url())
    for root in ("runs", "evals", "registry", "timings", "manifests", "renders", "nightly"):
        for path in finished.list(root):
            other.put(path, finished.read(path))
    times = {"begun_at", "ended_at", "planned_at"}
    for listed in (list_runs, list_renders):
        here, there = (listed(place).model_dump() for place in (finished, other))
        for name in ("runs", "renders"):
            for one in [*here.get(name, ()), *there.get(name, ())]:
                assert all(one.pop(time) for time in times & one.keys())
        assert {**here, "workspace": other.url} == there


def test_runs_stand_newest_first_and_older_ones_are_counted(store: FolderStore) -> None:
    for number, run_id in enumerate(("middle", "oldest", "newest")):
        write_run(store, run_id)
        begin(store, run_id)
        modified_s = LATER_S + (1, 0, 2)[number]
        os.utime(store.root / f"runs/{run_id}/run.json", (modified_s, modified_s))
    found = list_runs(store, limit=2)
    assert [run.run_id for run in found.runs] == ["newest", "middle"]
    assert found.num_older == 1
    assert [run.run_id for run in list_runs(store).runs] == ["newest", "middle", "oldest"]
    assert found.runs[0].begun_at == "2033-05-18T03:33:22+00:00"


def test_a_run_is_stopped_running_failed_or_done(store: FolderStore) -> None:
    record = begin(store, "one")
    write_checkpoint(store, "one", 4)
    rows = [{"step": step, "loss": 1 / step} for step in range(1, 6)]
    store.put("runs/one/losses.jsonl", "\n".join(map(json.dumps, rows)).encode())
    run = of_run(store, "one")
    assert (run.state, run.steps, run.max_steps, run.loss) == ("stopped", 4, 8, 0.2)
    with at_work(store, "a worker of hvkf train", work_digest(record)):
        assert of_run(store, "one").state == "running"
    with at_work(store, "a worker of hvkf train", "0" * 32):
        assert of_run(store, "one").state == "stopped", "another run is trained"
    night = NightRecord(
        name="house",
        number=1,
        owner="a test",
        started_at="",
        lease_until_s=0,
        outcome=Outcome.FAILED,
        reason="the loss is not finite",
        run_id="one",
    )
    store.put(night_path("house", 1), night.to_json())
    assert (of_run(store, "one").state, of_run(store, "one").reason) == ("failed", night.reason)
    write_run(store, "one", step=8)
    assert (of_run(store, "one").state, of_run(store, "one").reason) == ("done", "")


def test_a_run_that_is_planned_waits(store: FolderStore) -> None:
    record = RunRecord(run_id="new", digest="0" * 32, settings={})
    plan = Plan(
        stage="train",
        digest=work_digest(record),
        config={},
        inputs={"run": record.model_dump()},
        parts=(),
    )
    ledger.put_plan(store, plan)
    assert (of_run(store, "new").state, of_run(store, "new").begun_at) == ("waiting", None)
    store.put("runs/new/run.json", record.to_json())
    assert of_run(store, "new").state == "waiting", "nothing is saved yet"
    write_checkpoint(store, "new", 1)
    assert of_run(store, "new").state == "stopped"


def test_a_run_that_was_removed_is_no_run_although_its_videos_are_remembered(
    store: FolderStore,
) -> None:
    write_run(store, "gone")
    for path in list(store.list("runs")):
        if not path.endswith("/trained_on.json"):
            store.delete(path)
    assert list(store.list("runs")) == ["runs/gone/trained_on.json"]
    assert list_runs(store).runs == ()


def test_the_cost_of_a_run_is_that_of_all_its_processes(store: FolderStore) -> None:
    write_run(store, "one")
    assert of_run(store, "one").device_hours is None, "an earlier hvkf timed nothing"
    for number, (ranks, seconds) in enumerate(((8, 1800.0), (4, 900.0))):
        timing = TrainTiming(run_id="one", num_ranks=ranks, step=number, seconds=seconds)
        store.put(f"{timings_folder('one')}/{number}.json", timing.to_json())
    assert of_run(store, "one").device_hours == 5.0


def flip(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize("damage", [flip, lambda data: data[: len(data) // 2], lambda data: b""])
def test_damage_and_foreign_files_are_a_line_each(
    finished: FolderStore, capsys: pytest.CaptureFixture[str], damage: Callable[[bytes], bytes]
) -> None:
    (made,) = list_renders(finished).renders
    damaged = [
        "runs/test/run.json",
        "runs/test/result.json",
        *finished.list(timings_folder("test")),
        *(path for path in finished.list("registry") if path.endswith("house.json")),
        *finished.list("registry/decisions"),
        *finished.list("nightly"),
        f"{manifest_folder(made.name)}/record.json",
        f"{manifest_folder(made.name)}/results.parquet",
    ]
    foreign = ["runs/notes.txt", "runs/test/.DS_Store", "manifests/todo.md"]
    for path in damaged:
        finished.put(path, damage(finished.read(path)))
    for path in foreign:
        finished.put(path, b"mine")
    run_command("runs", f"--workspace={finished.root}")
    run_command("renders", f"--workspace={finished.root}")
    said = capsys.readouterr()
    for path in damaged:
        assert f"damaged: {finished.url}/{path} is damaged" in said.err
    for path in foreign:
        assert f"not of hvkf, left alone: {path}\n" in said.out
        assert finished.read(path) == b"mine"
    assert any(line.split()[0] == "test" for line in said.out.splitlines())
    assert any(line.split()[0] == made.name for line in said.out.splitlines())


def test_json_and_table_say_the_same(
    finished: FolderStore, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, name in (("runs", "run_id"), ("renders", "name")):
        run_command(command, f"--workspace={finished.root}")
        title, line = capsys.readouterr().out.splitlines()
        run_command(command, f"--workspace={finished.root}", "--json")
        found = json.loads(capsys.readouterr().out)
        (one,) = found[command]
        assert line.startswith(f"{one[name]}  {one['state']} ")
        assert title.index("STATE") == line.index(one["state"])
        assert f"{one['device_hours']:.2f}" in line
        assert found["workspace"] == finished.url


def test_an_empty_workspace_is_told_how_to_begin(
    store: FolderStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, begun_by in (("runs", "hvkf train"), ("renders", "hvkf submit")):
        run_command(command, f"--workspace={store.root}")
        assert f"`{begun_by}` begins one" in capsys.readouterr().out
        with pytest.raises(BadInput, match="There is no workspace"):
            run_command(command, f"--workspace={tmp_path / 'nowhere'}")


@pytest.fixture
def pairs(tmp_path: Path) -> Config:
    folder = write_images(tmp_path / "pairs")
    rows = [row("one"), row("two", seed=2), row("three", seed=3), row("none", first="gone.png")]
    return config_for(write_manifest(folder, rows), max_failed_fraction=0.5)


def test_a_manifest_is_waiting_running_stopped_and_failed(
    pairs: Config, store: FolderStore
) -> None:
    def listed() -> Render:
        (found,) = list_renders(store).renders
        return found

    quoted = render.quoted_plan(pairs, store)
    plan = quoted.plan
    ledger.put_plan(store, plan)
    found = listed()
    assert (found.name, found.state, found.num_rows) == (plan.digest, "waiting", 4)
    assert (found.num_rendered, found.num_failed) == (0, 1), "an image is not there"
    assert found.device_hours is None
    with at_work(store, "a worker of hvkf render", plan.digest):
        assert listed().state == "running"
    group = quoted.quote.groups[0].model_copy(update={"seconds": 7200.0})
    quote = quoted.quote.model_copy(update={"groups": (group,)})
    store.put(f"{manifest_folder(plan.digest)}/quote.json", quote.to_json())
    assert (listed().device_hours, listed().is_quoted) == (2.0, True)

    for task, code in zip(rows_of(plan, store), (SET_ASIDE, "unreadable-image"), strict=False):
        failure = row_failure(task.row, code, "no")
        put_record(store, failure_record(task, failure, "a test"))
    found = listed()
    assert (found.state, found.num_failed, found.num_set_aside) == ("stopped", 3, 1)
    render.run(plan, store, plan.parts)
    assert (listed().state, listed().num_rendered) == ("stopped", 1)
    with pytest.raises(BadInput, match="3 of 4 failed"):
        render.commit(plan, store)
    found = listed()
    assert (found.state, found.num_rendered, found.num_failed) == ("failed", 1, 3)
    assert (found.num_set_aside, found.gallery) == (1, None)

"""Verifying: an object of any kind that is damaged or gone is seen, and its sentence names it."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvkf import ledger
from hvkf.cli import stage_module
from hvkf.config import Config
from hvkf.errors import BadInput, CorruptData
from hvkf.journal import delete_record, entry_path
from hvkf.records import CatalogCommit
from hvkf.stages import ingest
from hvkf.storage import FolderStore
from hvkf.stored_kinds import KINDS, Kind, kind_of
from hvkf.uses import PLAN_LIFE_S, PLANS
from hvkf.verify import verify_workspace
from hvkf.verify_records import RECORDS
from tests.commands import run_command
from tests.whole_workspace import STAGES, make_whole_workspace

DOCS = Path(__file__).parents[1] / "docs" / "formats.md"
CHECKED = [kind for kind in KINDS if kind.check != "none"]
NEEDED = [kind for kind in KINDS if kind.absence != "may go"]


@pytest.fixture(scope="module")
def whole_chain(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Settings whose workspace has an object of every kind; each test leaves it as it was."""
    return make_whole_workspace(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def whole(whole_chain: Config) -> Path:
    return Path(whole_chain.workspace)


@pytest.fixture
def store(whole: Path) -> FolderStore:
    return FolderStore(whole)


def objects(store: FolderStore) -> Iterator[str]:
    for file in sorted(store.root.rglob("*")):
        if file.is_file() and not file.name.startswith("."):
            yield file.relative_to(store.root).as_posix()


def newest(store: FolderStore, kind: Kind) -> str:
    """Choose an object of a kind: the last, for older ones may be named by nobody any more."""
    return [path for path in objects(store) if kind_of(path) == kind][-1]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damaged(store: FolderStore, path: str, damage: Callable[[bytes], bytes] | None) -> list[str]:
    """Verify with one object damaged, or gone; then put it back."""
    file = store.root / path
    data = file.read_bytes()
    file.unlink()
    if damage is not None:
        file.write_bytes(damage(data))
    try:
        return verify_workspace(store).faults
    finally:
        file.write_bytes(data)


def test_every_object_of_a_finished_chain_is_of_one_kind_and_as_it_was_written(
    store: FolderStore,
) -> None:
    found = verify_workspace(store)
    assert found.faults == []
    assert found.foreign == []
    assert set(found.counts) == {kind.name for kind in KINDS}
    assert found.num_objects == len(list(objects(store))) == sum(found.counts.values())
    for path in objects(store):
        matching = [kind.name for kind in KINDS if kind_of(path) == kind]
        assert len(matching) == 1, f"{path}: {matching}"


@pytest.mark.parametrize("kind", CHECKED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("damage", [flip, cut])
def test_damage_is_seen_and_named(
    store: FolderStore, kind: Kind, damage: Callable[[bytes], bytes]
) -> None:
    path = newest(store, kind)
    faults = damaged(store, path, damage)
    assert any(fault.startswith(f"{store.url}/{path}") for fault in faults), faults


@pytest.mark.parametrize("kind", NEEDED, ids=lambda kind: kind.name)
def test_what_is_gone_is_missed(store: FolderStore, kind: Kind) -> None:
    path = newest(store, kind)
    faults = damaged(store, path, None)
    assert any(fault.startswith(f"{store.url}/{path} is gone") for fault in faults), faults


def test_what_may_go_is_not_missed(store: FolderStore) -> None:
    for kind in KINDS:
        if kind.absence == "may go":
            assert damaged(store, newest(store, kind), None) == [], kind.name


def test_a_finished_chain_goes_on_without_all_that_may_go(
    whole_chain: Config, tmp_path: Path
) -> None:
    shutil.copytree(whole_chain.workspace, tmp_path / "copy")
    store = FolderStore(tmp_path / "copy")
    for path in list(objects(store)):
        kind = kind_of(path)
        if kind is not None and kind.absence == "may go":
            store.delete(path)
    assert verify_workspace(store).faults == []
    for stage in (*STAGES, "render"):
        plan = stage_module(stage).plan(whole_chain, store)
        assert ledger.pending_parts(store, plan) == [], stage
        assert stage_module(stage).commit(plan, store).reused, stage


def test_scans_that_went_before_their_commit_are_made_again(
    whole_chain: Config, tmp_path: Path
) -> None:
    store = FolderStore(tmp_path)
    plan = ingest.plan(whole_chain, store)
    ingest.run(plan, store, plan.parts)
    assert ledger.pending_parts(store, plan) == []
    for path in list(store.list("datasets")):
        store.delete(path)
    assert ledger.pending_parts(store, plan) == list(plan.parts)


def test_a_plan_and_its_rows_are_missed_until_its_result_is_committed_or_a_week_is_over(
    whole_chain: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole_chain.workspace, tmp_path / "copy")
    store = FolderStore(tmp_path / "copy")
    (use,) = (path for path in store.list(PLANS) if "render-" in path)
    plan = f"plans/render/{Path(use).stem.partition('-')[2]}.json"
    record, rows = (
        next(path for path in store.list("manifests") if name in path)
        for name in ("/record.json", "/rows-")
    )
    delete_record(store, record)  # as before the commit
    store.delete(rows)
    (fault,) = verify_workspace(store).faults
    assert fault.startswith(f"{store.url}/{rows} is gone although {plan} names it: ")
    store.delete(plan)
    (fault,) = verify_workspace(store).faults
    assert fault.startswith(f"{store.url}/{plan} is gone although {use} names it: run the stage")
    in_a_week_s = time.time() + PLAN_LIFE_S + 1
    monkeypatch.setattr(time, "time", lambda: in_a_week_s)
    assert verify_workspace(store).faults == []


def test_a_record_in_anothers_place_is_seen(store: FolderStore) -> None:
    first, second = sorted(path for path in objects(store) if path.endswith("/commit.json"))
    (fault, *_) = damaged(store, second, lambda data: store.read(first))
    assert f"{second} is damaged (it is the record of {first})" in fault


def test_the_command_answers_65_and_says_what_there_is(
    store: FolderStore, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"--workspace={store.root}"
    run_command("verify", place)
    said = capsys.readouterr().out
    assert "\n  checkpoint records: 2\n" in f"\n{said}"
    assert "stored objects are as they were written" in said
    path = next(store.list("claims"))
    data = store.read(path)
    store.put(path, b"{")
    try:
        with pytest.raises(CorruptData, match="1 stored object is damaged or gone") as caught:
            run_command("verify", place)
    finally:
        store.put(path, data)
    assert caught.value.exit_code == 65
    assert f"{path} is damaged (it is not JSON that hvkf writes" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["verify", "gc", "fetch", "picture", "registry list"])
def test_a_command_that_only_reads_makes_no_workspace(tmp_path: Path, command: str) -> None:
    words = {"fetch": ["0", str(tmp_path / "out")], "picture": ["train", "r"]}.get(command, [])
    place = tmp_path / "nowhere"
    with pytest.raises(BadInput, match=r"There is no workspace at .*nowhere") as caught:
        run_command(*command.split(), *words, "--workspace", str(place))
    assert caught.value.exit_code == 65
    assert not place.exists()


def test_foreign_files_are_named_and_break_nothing(
    store: FolderStore, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = ["scenes/.DS_Store", "registry/notes.txt", "latents/Thumbs.db", "nightly/x/a.json"]
    for path in foreign:
        store.put(path, b"mine")
    try:
        run_command("verify", f"--workspace={store.root}")
    finally:
        for path in foreign:
            store.delete(path)
    said = capsys.readouterr().out
    assert "4 foreign files, left alone: " in said
    for path in foreign:
        assert path in said


def test_what_is_deleted_on_purpose_is_forgotten(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    store = FolderStore(tmp_path / "copy")
    (path,) = store.list("nightly")
    store.delete(path)
    (fault,) = verify_workspace(store).faults
    assert fault.endswith(f"; if it was deleted on purpose, tell by `hvkf verify --forget {path}`.")
    run_command("verify", f"--workspace={store.root}", "--forget", "nightly")
    assert not store.exists(entry_path(path))
    record = next(path for path in store.list("manifests") if path.endswith("/record.json"))
    delete_record(store, record)
    assert verify_workspace(store).faults == []


def test_records_without_checksums_are_read_and_answered_with_what_is_known(
    tmp_path: Path,
) -> None:
    """A workspace of an earlier hvkf."""
    store = FolderStore(tmp_path)
    old = b'{"catalog":"datasets/m/c/catalog.parquet","dataset":"m","format_version":1,'
    old += b'"num_clips":1,"num_failed":0,"number":1,"videos":"datasets/m/c/videos.json"}\n'
    path = "datasets/m/commits/000001.json"
    store.put(path, old)
    read = ledger.latest_commit(store, "datasets/m/commits", CatalogCommit)
    assert read is not None
    assert ledger.put_commit(store, "datasets/m/commits", read) == path
    assert store.read(path) == old
    # What it names is gone, and the workspace's format.
    assert len(verify_workspace(store).faults) == 3


def test_each_kind_of_record_has_its_class() -> None:
    assert set(RECORDS) == {kind.name for kind in KINDS if kind.check == "record"}


def test_the_page_of_formats_shows_the_table_of_kinds() -> None:
    text = DOCS.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    shown = [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows]
    assert shown == [
        (
            *(f"`{kind.pattern}`", kind.name, kind.what, kind.writer, kind.reader),
            *(kind.check, kind.absence),
        )
        for kind in KINDS
    ]
    reasons = text.partition("What may go, and why:")[2].split("|---|---|\n")[1].splitlines()
    assert reasons == [
        f"| {kind.name} | {kind.why_it_may_go} |" for kind in KINDS if kind.why_it_may_go
    ]


def test_what_may_go_says_why() -> None:
    for kind in KINDS:
        assert (kind.absence == "may go") == bool(kind.why_it_may_go), kind.name

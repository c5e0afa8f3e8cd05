"""The door to stored records: what does not read is one sentence, and no one goes round it."""

import ast
from pathlib import Path

import pytest

from hvkf.catalog import newest_catalog, read_clips, to_parquet
from hvkf.errors import CorruptData
from hvkf.ledger import latest_commit, read_plan
from hvkf.records import CatalogCommit, CheckpointRecord, Clip, Plan
from hvkf.registry import Registered, find_registered, names
from hvkf.storage import FolderStore
from hvkf.stored import read_named, read_record
from hvkf.stored_kinds import KINDS, kind_of

ROOT = Path(__file__).parents[1] / "hvkf"
GOOD = CheckpointRecord(step=4, files=()).to_json()
PATH = "runs/test/step-00000004/commit.json"
# Decoders of what is no stored record: users' tables, models' files, the API, MDS indexes.
OTHER_FORMATS = {
    "jobs/kubernetes.py",
    "jobs/one_at_a_time.py",  # who holds a lock of this machine
    "jobs/kubernetes_access.py",
    "manifest_cells.py",
    "parquet_rows.py",
    "mds_index.py",
    "model/lora_file.py",
    "model_source.py",  # a file of a checkpoint
    "model/tiny_text.py",
    "estimate/parts.py",
    "progress.py",
    "shards.py",
    "stages/render_results.py",  # a cell of a row
    "table_files.py",
    "training/items.py",
    "training/sharding.py",
}


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "it is empty"),
        (GOOD[:-9], "it is not JSON"),
        (b"\xff" + GOOD, "byte 0 is not UTF-8"),
        (b"[" * 100_000, "it is not JSON"),
        (b"[]", "it is no JSON object"),
        (b'{"step":NaN,"files":[]}', "it is not JSON that hvkf writes: NaN is no number"),
        (b'{"step":1e400,"files":[]}', "Out of range float"),
        (b'{"step":' + b"9" * 5000 + b',"files":[]}', "it is not JSON"),
        (b'{"step":"4","files":[]}', "step: Input should be a valid integer"),
        (b'{"step":4,"files":[],"more":1}', "more: Extra inputs are not permitted"),
        (b'{"step":4,"files":[{}]}', "files.0.name: Field required; and 2 more"),
        (b'{"step":4,"files":[],"format_version":"1"}', "its format_version is '1'"),
        (b'{"step":4,"files":[{"name":"\\ud800"}]}', "'utf-8' codec can't encode character"),
    ],
)
def test_what_does_not_read_is_one_sentence(store: FolderStore, data: bytes, problem: str) -> None:
    store.put(PATH, data)
    with pytest.raises(CorruptData) as caught:
        read_record(store, PATH, CheckpointRecord)
    sentence = str(caught.value)
    assert sentence.startswith(f"{store.url}/{PATH} is damaged ({problem}")
    assert sentence.endswith(
        "restore it from a backup, or delete it, so that the run goes on from an older checkpoint."
    )
    assert len(sentence) - len(store.url) < 400
    assert "\n" not in sentence


def test_a_newer_format_is_told_from_damage(store: FolderStore) -> None:
    store.put(PATH, b'{"step":4,"files":[],"format_version":2,"new":1}')
    with pytest.raises(CorruptData, match=r"newer hvkf: its format is 2, and this hvkf reads 1"):
        read_record(store, PATH, CheckpointRecord)


def test_absence_stays_absence_unless_another_record_names_it(store: FolderStore) -> None:
    with pytest.raises(FileNotFoundError):
        read_record(store, PATH, CheckpointRecord)
    with pytest.raises(CorruptData, match=r"commit.json is gone although a record names it"):
        read_named(store, PATH, CheckpointRecord)


def test_a_name_without_a_history_is_damaged(store: FolderStore) -> None:
    store.put("registry/house.json", b'{"name":"house","history":[]}')
    with pytest.raises(CorruptData, match="history: Tuple should have at least 1 item"):
        find_registered(store, "house")


def test_a_plan_whose_settings_are_none_is_damaged(store: FolderStore) -> None:
    plan = Plan(stage="cache", digest="0" * 32, config={"cash": {}}, inputs={}, parts=())
    store.put(plan.path, plan.to_json())
    with pytest.raises(CorruptData, match=r"plans/cache/0+.json is damaged .*cash.* plans anew"):
        read_plan(store, "cache", plan.digest)


@pytest.mark.parametrize("cut", [0, 10, 300, -1])
def test_a_catalog_that_is_cut_or_gone_is_a_sentence(store: FolderStore, cut: int) -> None:
    path = "datasets/main/0/catalog.parquet"
    with pytest.raises(CorruptData, match=r"catalog.parquet is gone although"):
        read_clips(store, path)
    clip = Clip(
        clip_id="1",
        source="a.mp4",
        source_sha256="0",
        caption="a",
        start=0,
        end=9,
        source_frames=9,
        source_fps=24,
        num_frames=9,
        fps=24,
        width=64,
        height=64,
        duration_s=1,
        split="train",
    )
    store.put(path, to_parquet([clip])[:cut])
    with pytest.raises(CorruptData, match=r"catalog.parquet is damaged .*hvkf ingest"):
        read_clips(store, path)
    store.put(path, to_parquet([CheckpointRecord(step=4, files=())]))
    with pytest.raises(
        CorruptData, match=r"catalog.parquet is damaged .*Field required; and 17 more"
    ):
        read_clips(store, path)


def test_foreign_files_are_neither_commits_nor_names(store: FolderStore) -> None:
    commit = CatalogCommit(
        dataset="main", number=1, catalog="c", videos="v", num_clips=0, num_failed=0
    )
    store.put("datasets/main/commits/000001.json", commit.to_json())
    store.put("datasets/main/commits/notes.txt", b"mine")
    store.put("datasets/main/commits/.DS_Store", b"\0")
    store.put("registry/notes.txt", b"mine")
    assert newest_catalog(store, "main") == commit
    assert latest_commit(store, "datasets/other/commits", CatalogCommit) is None
    assert names(store) == []
    assert kind_of("registry/notes.txt") is None


def test_each_kind_says_what_to_do() -> None:
    for kind in KINDS:
        assert kind.fix[0].islower()
        assert kind.fix[-1].isalnum() or kind.fix[-1] == "`"
    assert kind_of("registry/house.json") is not None
    assert Registered.model_fields["history"].metadata


@pytest.mark.parametrize(
    "file", sorted(ROOT.rglob("*.py")), ids=lambda file: file.relative_to(ROOT).as_posix()
)
def test_no_other_module_decodes_a_stored_record(file: Path) -> None:
    path = file.relative_to(ROOT).as_posix()
    decoders = {"from_json", "read_table", "read_parquet"}
    if path not in OTHER_FORMATS:
        decoders |= {"model_validate_json", "json.loads", "json.load", "pq.ParquetFile"}
    found = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
    ]
    used = [name for name in found if {name, name.rpartition(".")[2]} & decoders]
    if path == "records.py":  # where `Record.from_json` is defined
        used = [name for name in used if name not in ("cls.model_validate_json", "json.loads")]
    assert path == "stored.py" or not used

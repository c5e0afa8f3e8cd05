"""Mutated records of every kind: read, or refused in one sentence that names the path."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hvkf.errors import CorruptData
from hvkf.records import CHECKSUM, Record
from hvkf.storage import FolderStore
from hvkf.training.losses import decode_line
from hvkf.verify_records import RECORDS, claims_of, read_checked
from tests.fuzz.bounds import fuzzed, in_bounds

# One record of each kind, as the stages wrote them in the workspace of `tests/whole_workspace.py`.
FILE = Path(__file__).parent / "records.json"
SAMPLES: dict[str, dict[str, Any]] = json.loads(FILE.read_text())
ODD_TEXTS = [
    *("NaN", "-Infinity", "1e999", "9" * 5000, "-0", "1.5", '"1"', '""', "null", "true", "[]"),
    *("{}", "[[]]", "[null]", '{"a": 1}', '"\\ud800"', '"../../x"', '"\\u0000"'),
    *('"' + "x" * 5000 + '"', "[" * 500 + "]" * 500),
]
EXAMPLES = [b"", b"\xff", b"[" * 100_000, b"{}", b"null", b"\xef\xbb\xbf{}", b'{"a":1,"a":2}']

kinds = st.sampled_from(sorted(SAMPLES))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    return FolderStore(tmp_path_factory.mktemp("records"))


def check(store: FolderStore, kind: str, data: bytes) -> None:
    """Read one as `hvkf verify` does; what reads is written and read again."""
    path = SAMPLES[kind]["path"]
    store.put(path, data)
    with in_bounds():
        try:
            record = read_checked(store, path, RECORDS[kind])
        except CorruptData as fault:
            if not str(fault).startswith(f"{store.url}/{path} "):
                pytest.fail(f"the path is not named: {fault}")
            return
        for claim in claims_of(record, store, path):
            assert isinstance(claim.path, str)
        assert type(record).from_json(record.to_json()) == record


def leaves(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the places of all values in JSON data, the containers too."""
    found = [place]
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found += leaves(value[key], (*place, key))
    return found


def test_there_is_a_sample_of_each_kind_and_it_reads(store: FolderStore) -> None:
    assert set(SAMPLES) == set(RECORDS)
    for kind, sample in SAMPLES.items():
        store.put(sample["path"], json.dumps(sample["record"]).encode())
        record = read_checked(store, sample["path"], RECORDS[kind])
        assert json.loads(record.to_json()).items() >= sample["record"].items()


@fuzzed(1600)
@given(kind=kinds, data=st.data())
def test_a_value_of_another_kind_is_a_sentence(
    store: FolderStore, kind: str, data: st.DataObject
) -> None:
    """Without a checksum, as earlier versions wrote them."""
    values = copy.deepcopy(SAMPLES[kind]["record"])
    *way, last = data.draw(st.sampled_from([place for place in leaves(values) if place]))
    inside = values
    for key in way:
        inside = inside[key]
    action = data.draw(st.sampled_from(["replace", "remove", "add"]))
    if action == "remove":
        del inside[last]
        text = json.dumps(values)
    elif action == "replace":
        inside[last] = "@odd@"
        text = json.dumps(values).replace('"@odd@"', data.draw(st.sampled_from(ODD_TEXTS)))
    else:
        values[data.draw(st.text(max_size=9))] = data.draw(st.none() | st.integers() | st.text())
        text = json.dumps(values)
    check(store, kind, text.encode())


@fuzzed(800)
@given(
    kind=kinds,
    place=st.floats(0, 1, exclude_max=True),
    cut=st.integers(0, 40),
    inserted=st.binary(max_size=8),
)
def test_bytes_that_changed_are_a_sentence(
    store: FolderStore, kind: str, place: float, cut: int, inserted: bytes
) -> None:
    """With a checksum, no change of the content goes by."""
    record = RECORDS[kind].model_validate_json(json.dumps(SAMPLES[kind]["record"]))
    whole = record.to_json()
    begin = int(place * len(whole))
    changed = whole[:begin] + inserted + whole[begin + cut :]
    check(store, kind, changed)
    # A cut that takes the checksum and nothing needed leaves a record as earlier versions wrote it.
    if reads(RECORDS[kind], changed) and CHECKSUM in json.loads(changed):
        assert json.loads(changed) == json.loads(whole)


def reads(kind: type[Record], data: bytes) -> bool:
    try:
        kind.from_json(data)
    except (ValueError, RecursionError):
        return False
    return True


@pytest.mark.parametrize("kind", sorted(SAMPLES))
@pytest.mark.parametrize("data", EXAMPLES, ids=range(len(EXAMPLES)))
def test_what_was_found_to_break_is_a_sentence(store: FolderStore, kind: str, data: bytes) -> None:
    check(store, kind, data)


@fuzzed(1200)
@given(st.binary(max_size=60) | st.sampled_from([text.encode() for text in ODD_TEXTS]))
@example(b'{"step":1,"loss":NaN}')
@example(b'{"step":true,"loss":1}')
@example(b'{"step":1,"loss":"1"}')
@example(b'{"step":1}')
def test_a_line_of_losses_reads_or_is_a_sentence(store: FolderStore, line: bytes) -> None:
    with in_bounds():
        row = decode_line(store, "runs/test/losses.jsonl", 1, line)
        assert row["step"] == int(row["step"])

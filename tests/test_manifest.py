"""The render manifest: what its formats give, and that every fault of every row is said."""

import csv
import io
import json
import pickle
import string
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvkf.errors import BadInput, ConfigError
from hvkf.loras import resolve_lora
from hvkf.manifest import (
    ManifestRow,
    parse_manifest,
    read_manifest,
    split_location,
    stream_manifest,
)
from hvkf.manifest_errors import ManifestError
from hvkf.manifest_errors import as_csv as as_csv_of
from hvkf.settings.rendering import RenderConfig
from hvkf.storage import FolderStore

DEFAULTS = RenderConfig(width=64, height=48, num_frames=17, steps=4, guidance=6.0, seed=7)
PAIR = {"id": "a", "first_frame": "in/a.png", "last_frame": "in/b.png", "prompt": "A cat."}


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    sink = io.StringIO(newline="")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(sink, columns, delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def as_json(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows).encode()


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    columns = dict.fromkeys(key for row in rows for key in row)
    pq.write_table(pa.Table.from_pylist([{k: row.get(k) for k in columns} for row in rows]), sink)
    return sink.getvalue()


def parsed(rows: list[dict[str, Any]], **defaults: Any) -> list[ManifestRow]:
    return parse_manifest(as_json(rows), "pairs.json", DEFAULTS.model_copy(update=defaults))


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("pairs.csv", as_csv),
        ("pairs.JSON", as_json),
        ("pairs.jsonl", as_jsonl),
        ("pairs.parquet", as_parquet),
    ],
)
def test_every_format_gives_the_same_rows(name: str, encode: Any) -> None:
    rows = [
        {**PAIR, "width": 32, "height": 32, "num_frames": 9, "steps": 2, "guidance": 1.5},
        {**PAIR, "id": "b", "prompt": 'Él dice "sí",\nél va.', "seed": 5},
    ]
    first, second = parse_manifest(encode(rows), name, DEFAULTS)
    assert first == ManifestRow.model_validate({"row": 1, "seed": 7, **rows[0]})
    assert (second.row, second.prompt, second.seed) == (2, 'Él dice "sí",\nél va.', 5)
    assert (second.shape, second.steps, second.guidance) == ("64x48x17", 4, 6.0)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_csv_may_have_a_byte_order_mark_and_other_separators(delimiter: str) -> None:
    data = b"\xef\xbb\xbf" + as_csv([{**PAIR, "prompt": "Red, green; blue."}], delimiter)
    (row,) = parse_manifest(data, "pairs.csv", DEFAULTS)
    assert (row.id, row.prompt) == ("a", "Red, green; blue.")


def test_numbers_may_be_written_as_spreadsheets_write_them() -> None:
    (row,) = parsed([{**PAIR, "id": 12, "width": "32.0", "height": 32.0, "seed": " 3 "}])
    assert (row.id, row.width, row.height, row.seed) == ("12", 32, 32, 3)


def test_empty_cells_take_the_settings() -> None:
    (row,) = parsed([{**PAIR, "width": "", "guidance": float("nan")}])
    assert (row.width, row.guidance) == (64, 6.0)


def test_columns_of_other_purposes_are_left_alone() -> None:
    (row,) = parsed([{**PAIR, "tags": "x", "notes": "y"}])
    assert row.id == "a"


@pytest.mark.parametrize(
    ("field", "value", "fix"),
    [
        ("id", "", "give the row a name of its own"),
        ("id", "a/b", "printable characters without slashes"),
        ("id", True, "write text"),
        ("first_frame", None, "write an image's path, relative to the manifest"),
        ("first_frame", "/etc/a.png", "relative to the manifest's folder"),
        ("last_frame", "C:\\a.png", "relative to the manifest's folder"),
        ("last_frame", "s3://bucket/a.png", "relative to the manifest's folder"),
        ("last_frame", "in\\a.png", "write forward slashes"),
        ("last_frame", "in/../../a.png", "leaves the manifest's folder"),
        ("last_frame", "a\0.png", "NUL"),
        ("last_frame", 3, "write text"),
        ("prompt", 3, "write text"),
        ("prompt", "\ud800", "write text"),
        ("prompt", "", "write what happens in the video"),
        ("prompt", None, "write what happens in the video"),
        ("seed", -4, "write a whole number from 0"),
        ("width", 65, "a multiple of 16 up to 4096, such as 64 or 80"),
        ("width", 0, "such as 16"),
        ("height", 100000, "such as 4096"),
        ("height", "tall", "write a number"),
        ("height", 32.5, "write a whole number"),
        ("num_frames", 35, "write 4k+1, from 5 to 513, such as 33 or 37"),
        ("num_frames", 1, "such as 5"),
        ("steps", 0, "from 1 to 1000"),
        ("steps", True, "write a number"),
        ("guidance", -1, "from 0 to 100"),
        ("guidance", "inf", "finite"),
        ("seed", "x", "write a number"),
    ],
)
def test_a_bad_value_is_named_with_its_row_and_the_fix(field: str, value: Any, fix: str) -> None:
    with pytest.raises(BadInput) as caught:
        parsed([PAIR, {**PAIR, "id": "b", field: value}])
    sentence = str(caught.value)
    assert f"row 2: {field} is {value!r}: " in sentence
    assert fix in sentence
    assert "row 1" not in sentence


def test_all_faults_of_all_rows_are_said_at_once() -> None:
    rows: list[dict[str, Any]] = [
        {**PAIR, "width": 65, "num_frames": 34},
        {**PAIR, "id": "b"},
        {**PAIR, "id": "b", "first_frame": "../a.png"},
    ]
    with pytest.raises(ManifestError) as caught:
        parsed(rows)
    assert "4 errors in 3 rows: row 1: width is 65" in str(caught.value)
    assert len(str(caught.value)) < 600
    named = [(error.row, error.id, error.field, error.value) for error in caught.value.errors]
    assert named == [
        (1, "a", "width", "65"),
        (1, "a", "num_frames", "34"),
        (3, "b", "first_frame", "'../a.png'"),
        (3, "b", "id", "'b'"),
    ]


def test_of_very_many_errors_the_first_are_said_and_all_are_kept() -> None:
    with pytest.raises(ManifestError, match=r"250 errors in 250 rows.*and 24\d more") as caught:
        parsed([{**PAIR, "id": str(number), "width": 1} for number in range(250)])
    error = caught.value
    assert len(error.errors) == 250
    assert error.details[-1] == "and 50 more; the CSV has all of them"
    assert len(list(csv.reader(io.StringIO(as_csv_of(error.errors).decode("utf-8-sig"))))) == 251
    assert pickle.loads(pickle.dumps(error)).errors == error.errors


def test_the_table_has_a_line_for_each_error_and_the_csv_no_formulas() -> None:
    with pytest.raises(ManifestError) as caught:
        parsed([{**PAIR, "id": "=1+1", "prompt": "a|b", "width": "|"}, {**PAIR, "seed": -1}])
    lines = caught.value.details
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == [
        "|",
        "row",
        "|",
        "id",
        "|",
        "field",
        "|",
        "value",
        "|",
        "what",
        "to",
        "do",
        "|",
    ]
    assert lines[2].startswith("| 1   | =1+1 | width | '\\|'")
    assert b"\r\n1,'=1+1,width,'|',write a number\r\n" in as_csv_of(caught.value.errors)


def test_a_missing_column_and_a_misspelt_one_are_named() -> None:
    row = {"id": "a", "first_frame": "a.png", "prompt": "", "Last_Frame": "b.png", "widht": 64}
    with pytest.raises(BadInput) as caught:
        parsed([row])
    assert "no column 'last_frame'" in str(caught.value)
    assert "'Last_Frame' must be written 'last_frame'" in str(caught.value)
    assert "'widht' must be written 'width'" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "name", "sentence"),
    [
        (b"", "pairs.csv", "has no rows"),
        (b"id,first_frame,last_frame,prompt\n", "pairs.csv", "has no rows"),
        (b"[]", "pairs.json", "has no rows"),
        (b"{}", "pairs.json", "holds no list"),
        (b"[1]", "pairs.json", "row 1, is not a record"),
        (b"{", "pairs.jsonl", "line 1, is not valid JSON"),
        (b"PAR1", "pairs.parquet", "not a readable Parquet file"),
        (b"id\n\xff", "pairs.csv", "is not UTF-8 on line 2"),
        (b"id,id\n1,2\n", "pairs.csv", "two columns 'id'"),
        (b'id,prompt\n1,"open', "pairs.csv", "is not valid CSV"),
        (b"x", "pairs.xlsx", r"ends in '\.xlsx': a manifest is one of \.csv"),
    ],
)
def test_a_broken_file_is_refused_with_what_is_wrong(data: bytes, name: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        parse_manifest(data, name, DEFAULTS)


def test_cells_behind_the_last_column_are_a_fault_of_the_row() -> None:
    data = b"id,first_frame,last_frame,prompt\na,x.png,y.png,Red, green\n"
    with pytest.raises(BadInput, match="row 1: it has more cells than the header"):
        parse_manifest(data, "pairs.csv", DEFAULTS)


def test_a_default_that_cannot_be_rendered_is_the_settings_fault() -> None:
    with pytest.raises(ConfigError, match=r"render\.num_frames is 35: .*33 or 37"):
        parsed([PAIR], num_frames=35)


def test_the_manifest_is_read_from_where_the_settings_say(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_bytes(as_csv([PAIR]))
    at = RenderConfig(manifest=str(tmp_path / "pairs.csv"))
    assert [row.id for row in read_manifest(at)] == ["a"]
    with pytest.raises(BadInput, match=r"render\.manifest is not set"):
        read_manifest(RenderConfig())
    with pytest.raises(BadInput, match=r"no manifest '.*nowhere\.csv'"):
        read_manifest(RenderConfig(manifest=str(tmp_path / "nowhere.csv")))


@pytest.mark.parametrize(
    ("path", "folder", "name"),
    [
        ("pairs.csv", ".", "pairs.csv"),
        ("/pairs.csv", "/", "pairs.csv"),
        ("in/pairs.csv", "in", "pairs.csv"),
        ("s3://bucket/in/pairs.csv", "s3://bucket/in", "pairs.csv"),
    ],
)
def test_a_location_is_a_folder_and_a_name(path: str, folder: str, name: str) -> None:
    assert split_location(path) == (folder, name)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
names = st.text(string.ascii_letters + string.digits + "-_ é.", min_size=1).filter(str.strip)
manifests = st.lists(
    st.fixed_dictionaries(
        {
            "id": names.map(str.strip),
            "first_frame": st.just("a.png"),
            "last_frame": st.just("b.png"),
            "prompt": texts.map(str.strip).filter(bool),
            "width": st.integers(1, 256).map(lambda k: 16 * k),
            "num_frames": st.integers(1, 128).map(lambda k: 4 * k + 1),
            "seed": st.integers(0, 2**40),
        }
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda row: row["id"],
)


@given(manifests)
def test_what_is_written_is_read_in_every_text_format(rows: list[dict[str, Any]]) -> None:
    for name, data in (
        ("m.csv", as_csv(rows)),
        ("m.json", as_json(rows)),
        ("m.jsonl", as_jsonl(rows)),
    ):
        found = parse_manifest(data, name, DEFAULTS)
        assert [row.model_dump(include=set(rows[0])) for row in found] == rows


@pytest.mark.parametrize(
    "lora", ["~nobody-of-that-name/x", "x" * 300, "run:" + "x" * 300, "a\ud800"]
)
def test_a_lora_that_cannot_be_is_its_rows_error(lora: str, tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    data = as_json([{**PAIR, "lora": lora}, {**PAIR, "id": "b", "width": 1}])
    with pytest.raises(BadInput, match=r"row 1: lora is .*row 2: width is 1"):
        list(stream_manifest(data, "m.json", DEFAULTS, lambda spec: resolve_lora(spec, store)))

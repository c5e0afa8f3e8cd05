"""Tables of videos and manifests in each format, a little wrong: read, or refused in words."""

import contextlib
import csv
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hvkf.errors import BadInput
from hvkf.manifest import parse_manifest
from hvkf.settings.rendering import RenderConfig
from hvkf.tables import parse_table
from tests.fuzz.bounds import fuzzed, in_bounds
from tests.fuzz.mutations import ODD_VALUES, mutated_bytes, mutated_json

VIDEOS: list[dict[str, Any]] = [
    {"video_file": "videos/a.mp4", "caption": "A cat, asleep.", "more": 1},
    {"video_file": "videos/b.mp4", "caption": 'It says "no"; twice.', "more": None},
    {"video_file": "videos/c.mp4", "caption": "Él va\nlejos.", "more": 2.5},
]
PAIRS: list[dict[str, Any]] = [
    {
        "id": "a",
        "first_frame": "a.png",
        "last_frame": "b.png",
        "prompt": "A cat, asleep.",
        "width": 64,
        "height": 48,
        "num_frames": 17,
        "steps": 2,
        "guidance": 6.0,
        "seed": 1,
        "lora": "run:x",
        "negative_prompt": "",
        "tags": "x y",
        "true_cfg_scale": 1.0,
    },
    {"id": "b", "keyframes": [[0, "a.png"], [8, "b.png"], [-1, "c.png"]], "prompt": 'Say "no".'},
    {"id": 3, "first_frame": "workspace:a.png", "last_frame": "x/../b.png", "prompt": "A dog."},
]
DEFAULTS = RenderConfig(width=64, height=48, num_frames=17, keyframes="any")
FORMATS = [".csv", ".json", ".jsonl", ".parquet"]


def encoded(rows: Any, suffix: str) -> bytes:
    """Write rows as they are, where the format can hold them."""
    if suffix == ".json":
        return json.dumps(rows).encode()
    if suffix == ".jsonl":
        return "\n".join(map(json.dumps, rows)).encode()
    records = [row for row in rows if isinstance(row, dict)]
    columns = list(dict.fromkeys(key for row in records for key in row))
    if suffix == ".csv":
        sink = io.StringIO(newline="")
        writer = csv.writer(sink)
        writer.writerows([columns, *([row.get(key, "") for key in columns] for row in records)])
        return sink.getvalue().encode("utf-8", "surrogatepass")
    table = {key: [_cell(row.get(key)) for row in records] for key in columns}
    stored = io.BytesIO()
    pq.write_table(pa.table({key: pa.array(values) for key, values in table.items()}), stored)
    return stored.getvalue()


def _cell(value: Any) -> str | None:
    """A Parquet column has one type: text."""
    return None if value is None else json.dumps(value, ensure_ascii=True)


def read_videos(data: bytes, suffix: str) -> None:
    with in_bounds():
        parse_table(data, f"t{suffix}", video_column="video_file", caption_column="caption")


def read_pairs(data: bytes, suffix: str) -> None:
    with in_bounds():
        parse_manifest(data, f"m{suffix}", DEFAULTS)


NESTED = b"[" * 100_000
ODD_FILES = [
    *(NESTED, b"\xff\xfe\x00", b"\xfe\xff", b"\xef\xbb\xbf", b"\0" * 100, b"sep=", b"sep=;\n"),
    *(b'sep="\n"a";"b"\n', b"sep=\n\n", b"id,prompt\n\0,\0\n", b"video_file,caption\n\0,\0\n"),
    *("video_file\tcaption\n".encode("utf-16-le"), b"video_file,caption\r\ra,b\r", b"," * 5000),
    *(b'{"video_file": 1' + b"0" * 5000 + b"}", b"[1e999999]", b"PAR1" * 3, b'"' * 1001),
    *(b'[{"video_file": "a", "caption": ' + b"[" * 900 + b"]" * 900 + b"}]",),
]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("number", range(len(ODD_FILES)))
def test_odd_files_are_refused_or_read(number: int, suffix: str) -> None:
    read_videos(ODD_FILES[number], suffix)
    read_pairs(ODD_FILES[number], suffix)


@pytest.mark.parametrize("suffix", FORMATS)
@given(data=st.data())
@fuzzed(480)
def test_a_table_of_odd_bytes_is_refused_or_read(suffix: str, data: st.DataObject) -> None:
    read_videos(data.draw(mutated_bytes(encoded(VIDEOS, suffix))), suffix)


@pytest.mark.parametrize("suffix", FORMATS)
@given(data=st.data())
@fuzzed(480)
def test_a_manifest_of_odd_bytes_is_refused_or_read(suffix: str, data: st.DataObject) -> None:
    read_pairs(data.draw(mutated_bytes(encoded(PAIRS, suffix))), suffix)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
@given(rows=mutated_json(VIDEOS))
@fuzzed(480)
def test_a_table_of_odd_cells_is_refused_or_read(suffix: str, rows: Any) -> None:
    read_videos(encoded(rows, suffix), suffix)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
@given(rows=mutated_json(PAIRS))
@fuzzed(640)
def test_a_manifest_of_odd_cells_is_refused_or_read(suffix: str, rows: Any) -> None:
    read_pairs(encoded(rows, suffix), suffix)


@given(st.sampled_from(sorted({key for row in PAIRS for key in row})), ODD_VALUES)
@example("lora", "~bob/x")
@example("first_frame", ".")
@example("keyframes", [[10**30, "a.png"]])
@example("keyframes", "[" * 100_000)
@example("seed", "9" * 5000)
@example("width", 10**400)
@fuzzed(2400)
def test_any_cell_of_a_manifest_is_read_or_its_rows_error(column: str, value: Any) -> None:
    rows = [{**PAIRS[0], column: value}, {**PAIRS[1]}]
    if column != "keyframes":
        rows[0].pop("keyframes", None)
    read_pairs(encoded(rows, ".json"), ".json")


KINDS = st.sampled_from(
    [
        *(pa.string(), pa.large_string(), pa.binary(), pa.int8(), pa.uint64(), pa.float16()),
        *(pa.float64(), pa.bool_(), pa.null(), pa.date32(), pa.time64("ns"), pa.timestamp("ns")),
        *(pa.timestamp("us", tz="UTC"), pa.timestamp("s", tz="Mars/Crater"), pa.duration("ms")),
        *(pa.timestamp("ms", tz="+99:99"), pa.decimal128(38, 10), pa.list_(pa.string())),
        *(pa.struct([("a", pa.int64())]), pa.map_(pa.string(), pa.int64()), pa.binary(3)),
        *(pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.list_(pa.string()))),
    ]
)


@st.composite
def parquet_tables(draw: st.DrawFn) -> bytes:
    """A Parquet file whose columns are of any type, some of them wanted, some twice."""
    names = st.sampled_from(
        ["video_file", "caption", "id", "prompt", "seed", "video_file.x", "", "x"]
    )
    columns = draw(st.lists(st.tuples(names, KINDS), min_size=1, max_size=5))
    arrays = [pa.nulls(3, kind) if draw(st.booleans()) else _any_of(kind) for _, kind in columns]
    stored = io.BytesIO()
    pq.write_table(pa.table(arrays, names=[name for name, _ in columns]), stored)
    return stored.getvalue()


def _any_of(kind: pa.DataType) -> pa.Array:
    for values in (
        ["a.mp4", "", None],
        [0, 1, None],
        [-1, 1, 2],
        [True, False, None],
        [b"\xff", b"", b"abc"],
    ):
        try:
            return pa.array(values, kind)
        except (pa.ArrowException, TypeError, ValueError):
            continue
    return pa.nulls(3, kind)


@given(parquet_tables())
@fuzzed(800)
def test_columns_of_any_type_are_read_or_refused(data: bytes) -> None:
    read_videos(data, ".parquet")
    read_pairs(data, ".parquet")


def test_no_flipped_bit_in_the_facts_of_a_parquet_file_ends_the_process() -> None:
    """Arrow aborts when it is asked for a column's sizes where these bits are damaged."""
    data = encoded(VIDEOS, ".parquet")
    length = int.from_bytes(data[-8:-4], "little")
    start = len(data) - 8 - length
    flips = {(at, bit) for at in range(40) for bit in range(8)}
    flips |= {(at, at * 3 % 8) for at in range(length)}
    with in_bounds():
        for at, bit in sorted(flips):
            damaged = bytearray(data)
            damaged[start + at] ^= 1 << bit
            with contextlib.suppress(BadInput):
                parse_table(
                    bytes(damaged), "t.parquet", video_column="video_file", caption_column="caption"
                )


def parquet_of(columns: dict[str, Any]) -> bytes:
    stored = io.BytesIO()
    pq.write_table(pa.table(columns), stored)
    return stored.getvalue()


def repeated(text: str, times: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), pa.array([text]))


def test_five_million_rows_in_a_few_kilobytes_are_refused_at_once() -> None:
    data = parquet_of(
        {"video_file": repeated("a.mp4", 5_000_000), "caption": repeated("x", 5_000_000)}
    )
    assert len(data) < 200_000
    with in_bounds(), pytest.raises(BadInput, match="5000000 rows, more than 1000000: split it"):
        parse_table(data, "t.parquet", video_column="video_file", caption_column="caption")


def test_a_long_text_that_repeats_takes_no_memory() -> None:
    data = parquet_of(
        {"video_file": repeated("a.mp4", 20_000), "caption": repeated("long " * 100_000, 20_000)}
    )
    assert len(data) < 200_000
    with in_bounds():
        rows = parse_table(data, "t.parquet", video_column="video_file", caption_column="caption")
        assert len(rows) == 20_000


def test_bad_utf8_in_a_parquet_file_is_said() -> None:
    offsets = pa.py_buffer(b"\0\0\0\0\1\0\0\0")
    bad = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff")])
    data = parquet_of({"video_file": ["a.mp4"], "caption": bad})
    with pytest.raises(BadInput, match="holds text that is not UTF-8"):
        parse_table(data, "t.parquet", video_column="video_file", caption_column="caption")


def test_a_column_that_nobody_wants_may_be_of_any_type() -> None:
    other = pa.array([0], pa.timestamp("ns", tz="Mars/Crater"))
    data = parquet_of({"video_file": ["a.mp4"], "caption": ["x"], "taken": other})
    (row,) = parse_table(data, "t.parquet", video_column="video_file", caption_column="caption")
    assert (row.video, row.caption) == ("a.mp4", "x")

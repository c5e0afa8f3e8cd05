"""Tables are read back as written in every format, and what cannot work is named by row."""

import csv
import io
import json
import string
from collections.abc import Sequence

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvkf.errors import BadInput
from hvkf.tables import TableRow, parse_table

Pair = tuple[str, str]

captions = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
names = st.text(string.ascii_letters + string.digits + " _-é,;'\"", min_size=1, max_size=12)
videos = st.builds("videos/{}.mp4".format, names)
pairs = st.lists(st.tuples(videos, captions), min_size=1, max_size=8)


def csv_bytes(
    header: Sequence[str], records: Sequence[Sequence[str]], delimiter: str = ",", bom: bool = False
) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([header, *records])
    return text.getvalue().encode("utf-8-sig" if bom else "utf-8")


def parse(data: bytes | str, suffix: str = ".csv") -> list[TableRow]:
    raw = data.encode() if isinstance(data, str) else data
    return parse_table(raw, "t" + suffix, video_column="video", caption_column="caption")


def contents(rows: list[TableRow]) -> list[Pair]:
    assert [row.row for row in rows] == list(range(1, len(rows) + 1))
    return [(row.video, row.caption) for row in rows]


@given(pairs, st.sampled_from(",;\t|"), st.booleans())
def test_a_csv_is_read_back_as_written_with_any_separator_and_with_a_mark(
    written: list[Pair], delimiter: str, bom: bool
) -> None:
    records = [(caption, "x", video) for video, caption in written]
    data = csv_bytes(["caption", "other", "video"], records, delimiter, bom)
    assert contents(parse(data)) == written


@given(pairs, st.booleans())
def test_json_is_read_back_as_written(written: list[Pair], ascii_only: bool) -> None:
    records = [{"video": video, "caption": caption, "other": 1} for video, caption in written]
    assert contents(parse(json.dumps(records, ensure_ascii=ascii_only), ".json")) == written


@given(pairs, st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_jsonl_is_read_back_as_written(written: list[Pair], ascii_only: bool, end: str) -> None:
    lines = [
        json.dumps({"caption": caption, "video": video}, ensure_ascii=ascii_only)
        for video, caption in written
    ]
    assert contents(parse(end.join(lines) + end, ".jsonl")) == written


@given(pairs, st.booleans())
def test_parquet_is_read_back_as_written(written: list[Pair], as_dictionary: bool) -> None:
    columns = [pyarrow.array(column) for column in zip(*written, strict=True)]
    if as_dictionary:
        columns = [column.dictionary_encode() for column in columns]
    stored = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns, names=["video", "caption"]), stored)
    assert contents(parse(stored.getvalue(), ".parquet")) == written


def test_lines_of_a_csv_count_line_breaks_in_captions_and_blank_lines() -> None:
    rows = parse('video,caption\na.mp4,"one\ntwo"\n\nb.mp4,three\n')
    assert [(row.row, row.line, row.where) for row in rows] == [
        (1, 2, "row 1 (line 2)"),
        (2, 5, "row 2 (line 5)"),
    ]


def test_a_utf16_csv_as_spreadsheets_export_it_is_read() -> None:
    assert contents(parse("video\tcaption\na.mp4\tcafé\n".encode("utf-16"))) == [("a.mp4", "café")]


def test_prose_full_of_other_separators_does_not_mislead() -> None:
    data = "video,caption\n" + "a.mp4,one; two; three | four; five\n" * 3
    assert contents(parse(data)) == [("a.mp4", "one; two; three | four; five")] * 3


def test_a_header_with_other_separators_does_not_mislead() -> None:
    data = 'video,"made on; at; by; with",caption\na.mp4,x,fine\n'
    assert contents(parse(data)) == [("a.mp4", "fine")]


def test_line_separators_that_json_leaves_unescaped_stay_in_a_jsonl_caption() -> None:
    caption = "one\u2028two\u2029three\x85four"
    data = json.dumps({"video": "a.mp4", "caption": caption}, ensure_ascii=False)
    assert contents(parse(data, ".jsonl")) == [("a.mp4", caption)]


def test_a_caption_longer_than_the_csv_modules_limit_is_read() -> None:
    long = "word " * 40_000
    assert contents(parse(csv_bytes(["video", "caption"], [("a.mp4", long)]))) == [("a.mp4", long)]


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        ("video,caption\na.mp4,\nb.mp4\n", ".csv"),
        ('[{"video": "a.mp4", "caption": null}, {"video": "b.mp4", "caption": NaN}]', ".json"),
        ('{"video": "a.mp4", "caption": ""}\n{"video": "b.mp4"}', ".jsonl"),
    ],
)
def test_a_missing_or_empty_caption_reads_as_an_empty_one(data: str, suffix: str) -> None:
    assert contents(parse(data, suffix)) == [("a.mp4", ""), ("b.mp4", "")]


def test_null_captions_of_a_parquet_read_as_empty_ones() -> None:
    stored = io.BytesIO()
    table = pyarrow.table({"video": ["a.mp4"], "caption": pyarrow.array([float("nan")])})
    pyarrow.parquet.write_table(table, stored)
    assert contents(parse(stored.getvalue(), ".parquet")) == [("a.mp4", "")]


def test_an_unquoted_separator_in_a_caption_is_named_by_row() -> None:
    with pytest.raises(BadInput, match=r"t\.csv, row 2 \(line 3\) has 3 cells .* double quotes"):
        parse("video,caption\na.mp4,fine\nb.mp4,a cat, a dog\n")


def test_empty_cells_behind_the_last_column_do_not_matter() -> None:
    assert contents(parse("video,caption\na.mp4,fine,,\n")) == [("a.mp4", "fine")]


@pytest.mark.parametrize(
    ("data", "suffix", "words"),
    [
        ('video,caption\na.mp4,x\nb.mp4,"never closed\nc.mp4,y\n', ".csv", "line 3 .* close its"),
        (b"video,caption\na.mp4,caf\xe9\n", ".csv", "not UTF-8 on line 2 .*save it as UTF-8"),
        ("[1, 2", ".json", "t.json is not valid JSON"),
        ("[" * 100_000, ".json", "t.json is not valid JSON"),
        ('{"video": {"0": "a.mp4"}}', ".json", "holds no list"),
        (
            '{"video": "a.mp4", "caption": ""}\n{"video"',
            ".jsonl",
            "t.jsonl, line 2, is not valid JSON",
        ),
        ('["a.mp4"]', ".json", "The table t.json, row 1, is not a record"),
        (b"PAR1 but not really PAR1", ".parquet", "not a readable Parquet file"),
        ("video,caption\n", ".csv", "has no rows"),
        ("", ".csv", "has no rows"),
        ("", ".jsonl", "has no rows"),
        ("[]", ".json", "has no rows"),
        ("video,caption\n", ".xlsx", "'.xlsx': a table is one of .csv"),
        ("video,video,caption\na,b,c\n", ".csv", "two columns 'video'"),
        ('[{"video": "a.mp4", "caption": 5}]', ".json", r"row 1 .* not text \(5\)"),
        ('[{"video": "a.mp4", "caption": "\\ud800"}]', ".json", "row 1 .* not text"),
    ],
)
def test_a_table_that_cannot_be_read_says_where_and_why(
    data: bytes | str, suffix: str, words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        parse(data, suffix)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_a_missing_column_is_named_with_those_there_and_the_nearest(suffix: str) -> None:
    record = {"video_file": "a.mp4", "caption": "x"}
    stored = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), stored)
    data = {
        ".csv": csv_bytes(list(record), [list(record.values())]),
        ".json": json.dumps([record]).encode(),
        ".jsonl": json.dumps(record).encode(),
        ".parquet": stored.getvalue(),
    }[suffix]
    with pytest.raises(BadInput) as caught:
        parse(data, suffix)
    assert str(caught.value) == (
        f"The table t{suffix} has no column 'video'; it has 'video_file', 'caption': "
        f"name its columns in the settings. Is 'video' there as 'video_file'?"
    )


@pytest.mark.parametrize(
    ("video", "words"),
    [
        ("", "without a video"),
        ("  ", "without a video"),
        (None, "without a video"),
        (float("nan"), "without a video"),
        (7, "not text"),
        ("a\0b.mp4", "not text"),
        ("/data/a.mp4", "absolute path"),
        ("C:\\data\\a.mp4", "absolute path"),
        ("https://example.org/a.mp4", "absolute path"),
        ("s3://bucket/a.mp4", "absolute path"),
        ("videos\\a.mp4", "backslashes"),
        ("../a.mp4", "leaves the base folder"),
        ("videos/../../a.mp4", "leaves the base folder"),
        (".", "leaves the base folder"),
    ],
)
def test_a_video_cell_that_cannot_work_is_refused(video: object, words: str) -> None:
    data = json.dumps([{"video": "ok.mp4", "caption": ""}, {"video": video, "caption": ""}])
    with pytest.raises(BadInput, match=f"has 1 row .*{words}.*: row 2: "):
        parse(data, ".json")


def test_ten_faulty_rows_are_listed_and_the_others_counted() -> None:
    data = "video,caption\n" + "".join(f"/v/{i}.mp4,x\n" for i in range(12))
    with pytest.raises(BadInput) as caught:
        parse(data)
    message = str(caught.value)
    assert "has 12 rows with an absolute path" in message
    assert "row 10 (line 11): '/v/9.mp4' and 2 more." in message
    assert "/v/10.mp4" not in message


@pytest.mark.parametrize(
    "written", ["videos/a.mp4", " videos/a.mp4 ", "videos/../videos/a.mp4", "./videos//a.mp4"]
)
def test_blanks_around_a_path_and_its_detours_do_not_count(written: str) -> None:
    assert contents(parse(f"video,caption\n{written},x\n")) == [("videos/a.mp4", "x")]

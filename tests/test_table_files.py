"""The one reader of tables: what spreadsheets write, and limits that no table of a person meets."""

import json
import os
from pathlib import Path

import pytest

from hvkf import table_files
from hvkf.errors import BadInput
from hvkf.table_files import Row, TableFile, read_file

WANTED = ("id", "prompt")


def rows_of(data: bytes | str, name: str = "t.csv") -> list[Row]:
    return list(TableFile(data.encode() if isinstance(data, str) else data, name, WANTED))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "id;prompt\na;Él va\n"),
        ("t.tsv", "id\tprompt\na\tÉl va\n"),
        ("t.json", '[{"id": "a", "prompt": "Él va"}]'),
        ("t.jsonl", '{"id": "a", "prompt": "Él va"}\n'),
    ],
)
def test_text_is_read_in_the_encodings_that_programs_write(
    name: str, text: str, encoding: str
) -> None:
    (row,) = rows_of(text.encode(encoding), name)
    assert row.values == {"id": "a", "prompt": "Él va"}


def test_utf16_without_a_mark_is_said() -> None:
    with pytest.raises(BadInput, match="is no text in UTF-8: save it as UTF-8"):
        rows_of("id,prompt\na,b\n".encode("utf-16-le"))


def test_excels_line_of_the_separator_is_no_header() -> None:
    (row,) = rows_of("sep=;\r\nid;prompt\r\na;red, green\r\n")
    assert row.values == {"id": "a", "prompt": "red, green"}
    assert row.where == "row 1 (line 3)"


def test_rows_of_empty_cells_are_no_rows() -> None:
    found = rows_of("id;prompt\na;x\n;\nb;y\n ;\n;\n")
    assert [(row.values["id"], row.line) for row in found] == [("a", 2), ("b", 4)]


def test_empty_columns_behind_the_last_do_not_matter() -> None:
    (row,) = rows_of("id;prompt;;\na;x;;\n")
    assert row == Row(1, 2, {"id": "a", "prompt": "x"})


def test_blanks_around_a_columns_name_do_not_matter() -> None:
    (row,) = rows_of("id , prompt\na,x\n")
    assert row.values == {"id": "a", "prompt": "x"}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", "id,prompt,id\n1,2,3\n"),
        ("t.json", '[{"id": 1, "id": 2}]'),
        ("t.jsonl", '{"id": 1, "id": 2}'),
    ],
)
def test_a_column_given_twice_is_refused(name: str, data: str) -> None:
    with pytest.raises(BadInput, match="two columns 'id': rename one"):
        rows_of(data, name)


@pytest.mark.parametrize("name", ["t.csv", "t.json", "t.jsonl"])
def test_more_rows_than_allowed_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "MAX_ROWS", 3)
    records = [{"id": number} for number in range(4)]
    data = {
        "t.csv": "id\n0\n1\n2\n3\n",
        "t.json": json.dumps(records),
        "t.jsonl": "\n".join(map(json.dumps, records)),
    }[name]
    with pytest.raises(BadInput, match="has more than 3 rows: split it"):
        rows_of(data, name)


def test_a_cell_longer_than_any_prompt_is_named() -> None:
    with pytest.raises(BadInput, match=r"cell of 1048577 letters in row 1 \(line 2\), column 'id'"):
        rows_of(f"id,prompt\n{'x' * ((1 << 20) + 1)},y\n")


def test_more_columns_than_anyone_has_are_refused() -> None:
    with pytest.raises(BadInput, match="more than 1000 columns"):
        rows_of(",".join(map(str, range(1001))) + "\n")
    lines = [json.dumps({str(number): 1}) for number in range(1001)]
    with pytest.raises(BadInput, match="more than 1000 columns"):
        rows_of("\n".join(lines), "t.jsonl")


def test_a_file_too_large_to_be_a_table_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_files, "MAX_TABLE_BYTES", 1 << 20)
    with (tmp_path / "t.csv").open("wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(BadInput, match=r"file too large \(up to 1 MiB are read\)"):
        read_file(str(tmp_path / "t.csv"), "none")
    with pytest.raises(BadInput, match="has 5 MiB, more than 1: split it"):
        rows_of(bytes(5 << 20))


def test_a_pipe_never_hangs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(BadInput, match=r"t\.csv' cannot be read: it is a named pipe"):
        read_file(str(tmp_path / "t.csv"), "none")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.csv", "There is no table"),
        ("", "There is no table"),
        ("file/t.csv", "file' is a file: name a folder"),
    ],
)
def test_what_is_not_there_is_said(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadInput, match=words):
        read_file(f"{tmp_path}/{name}", "There is no table.")


def test_a_name_that_no_system_takes_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read: file name too long") as caught:
        read_file(f"{tmp_path}/{'x' * 5000}.csv", "none")
    assert len(str(caught.value)) < 300

"""Progress counts what is done and what failed, for a person and for the process that waits."""

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from hvkf.progress import (
    PROGRESS_VARIABLE,
    Bars,
    Lines,
    WorkerBars,
    display,
    parse_line,
    progress,
)


def test_lines_tell_done_and_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PROGRESS_VARIABLE, "lines")
    with progress("cache", 3) as shown:
        shown.advance(note="a.mp4")
        shown.advance(2, note="b.mp4", failed=1)
    last = parse_line(capsys.readouterr().out.splitlines()[-1])
    assert last == {
        "label": "cache",
        "done": 3,
        "total": 3,
        "failed": 1,
        "note": "b.mp4",
        "unit": "items",
    }


def test_lines_tell_what_was_done_before_and_which_items_are_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PROGRESS_VARIABLE, "lines")
    with progress("render", 4, "steps", is_in_pieces=True) as shown:
        shown.resume(2)
        shown.advance(2)
        shown.advance(0, whole=1)
    first, *_, last = map(parse_line, capsys.readouterr().out.splitlines())
    assert first is not None
    assert last is not None
    assert (first["done"], first["resumed"], first["whole"]) == (2, 2, 0)
    assert (last["done"], last["resumed"], last["whole"]) == (4, 2, 1)


def test_a_bar_tells_how_long_the_whole_job_takes() -> None:
    console = terminal(200)
    with Bars(console) as shown:
        shown.show("0", {**EVENT, "left": "about 5 min"})
        shown.show("1", {**EVENT, "left": ""})
    first, second = console.export_text().splitlines()[-2:]
    assert "about 5 min left" in first
    assert "left" not in second


EVENT = {"label": "cache", "done": 1, "total": 2, "failed": 0, "note": "a.mp4"}


def terminal(width: int = 80) -> Console:
    return Console(width=width, record=True, force_terminal=True, file=io.StringIO())


def test_a_bar_says_how_many_failed_and_nothing_where_none_did() -> None:
    console = terminal(200)
    with Bars(console) as shown:
        worker_bars = WorkerBars(shown)
        worker_bars.show(0, EVENT)
        worker_bars.show(1, {**EVENT, "failed": 7})
    first, second = console.export_text().splitlines()[-2:]
    assert "failed" not in first
    assert "7 failed a.mp4" in second


def test_words_and_notes_are_no_markup() -> None:
    console = terminal(200)
    with Bars(console) as shown:
        shown.show("0", {**EVENT, "note": "[/step-1].mp4", "failed": 1})
        shown.say("a [/red] b")
    text = console.export_text()
    assert "[/step-1].mp4" in text
    assert "a [/red] b" in text


def test_a_long_path_is_not_broken() -> None:
    console, path = terminal(80), "/folder" * 40
    with Bars(console) as shown:
        shown.say(f"wrote {path}")
    assert path in console.export_text()


def test_a_file_gets_a_line_at_first_now_and_then_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hvkf.progress.LINE_INTERVAL_S", 0.2)
    with display() as shown:
        assert isinstance(shown, Lines)
        for done in range(1, 10):
            shown.show("0", {**EVENT, "done": done, "total": 10})
        said = ""
        deadline_s = time.monotonic() + 30
        while said.count("9 of 10") < 2 and time.monotonic() < deadline_s:
            time.sleep(0.05)
            said += capsys.readouterr().err
        shown.show("0", {**EVENT, "done": 10, "total": 10, "failed": 1})
    said += capsys.readouterr().err
    lines = [re.sub(r"[0-9]+ s", "0 s", line) for line in said.splitlines()]
    assert lines[0] == "cache: 1 of 10, 0 s (a.mp4)"
    assert set(lines[1:-1]) == {"cache: 9 of 10, 0 s (a.mp4)"}
    assert lines[-1] == "cache: 10 of 10, 1 failed, 0 s (a.mp4)"


def test_piped_output_has_no_bars_and_is_never_wrapped(tmp_path: Path) -> None:
    code = (
        "from hvkf.progress import display, progress\n"
        "with display() as shown: shown.say('x' * 500)\n"
        "with progress('cache', 2) as counted: counted.advance(2, note='y' * 300)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert ended.stderr.splitlines() == ["x" * 500, f"cache: 2 of 2, 0 s ({'y' * 300})"]


def test_quiet_shows_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HVKF_VERBOSITY", "quiet")
    with display() as shown:
        shown.say("a word")
        shown.show("0", EVENT)
    assert capsys.readouterr() == ("", "")

"""Progress counts what is done and what failed, for a person and for the process that waits."""

import pytest
from rich.console import Console

from hvkf.progress import PROGRESS_VARIABLE, WorkerBars, display, parse_line, progress


def test_lines_tell_done_and_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PROGRESS_VARIABLE, "lines")
    with progress("cache", 3) as shown:
        shown.advance(note="a.mp4")
        shown.advance(2, note="b.mp4", failed=1)
    last = parse_line(capsys.readouterr().out.splitlines()[-1])
    assert last == {"label": "cache", "done": 3, "total": 3, "failed": 1, "note": "b.mp4"}


def test_a_bar_says_how_many_failed_and_nothing_where_none_did() -> None:
    bars = display()
    worker_bars = WorkerBars(bars)
    event = {"label": "cache", "done": 1, "total": 2, "failed": 0, "note": "a.mp4"}
    worker_bars.show(0, event)
    worker_bars.show(1, {**event, "failed": 7})
    console = Console(width=200, record=True)
    console.print(bars.get_renderable())
    first, second = (line for line in console.export_text().splitlines() if "cache" in line)
    assert "failed" not in first
    assert "7 failed a.mp4" in second

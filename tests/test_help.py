"""Help at 80 columns, in a terminal and piped: whole sentences, nothing cut, nothing broken."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from hvkf import cli
from hvkf.settings_command import MOST_USED, field_of
from hvkf.storage import open_store
from tests.test_command_errors import Ended

ALL = "import sys; from tests.test_help import print_all; sys.exit(print_all())"
SEPARATOR = "=== "


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str]) -> Ended:
    return Ended(capsys)


def commands() -> Iterator[list[str]]:
    """Yield the words of every command and group."""

    def below(command: object, words: list[str]) -> Iterator[list[str]]:
        yield words
        for name, sub in getattr(command, "commands", {}).items():
            yield from below(sub, [*words, name])

    yield from below(typer.main.get_command(cli.app), [])


def print_all() -> int:
    """Print the help of every command; return the first code that is none of success."""
    for words in commands():
        print(SEPARATOR + " ".join(words), flush=True)
        if code := cli.run_command([*words, "--help"]):
            return code
    return 0


def in_terminal() -> str:
    """Print it all in a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-c", ALL], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # Linux says so when the last writer is gone
            break
        if not read:
            break
        shown += read
    os.close(ours)
    assert process.wait() == 0, shown.decode()[-2000:]
    return shown.decode().replace("\r\n", "\n")


def piped() -> str:
    environment = {**os.environ, "COLUMNS": "80"}
    command = [sys.executable, "-c", ALL]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    ).stdout


@pytest.mark.parametrize("shown", [in_terminal, piped])
def test_every_help_is_whole_at_80_columns(shown: "object") -> None:
    text = shown()  # type: ignore[operator]
    pages = text.split(SEPARATOR)[1:]
    assert len(pages) == len(list(commands())) > 25
    for page in pages:
        name, _, body = page.partition("\n")
        assert body.startswith("Usage: "), name
        assert "--help" in body, name
        assert "…" not in body, name
        assert not re.search(r"[\w,]\.\.\.$", body, re.MULTILINE), name
        assert max(map(len, body.splitlines())) <= 80, name
        assert "s3://bucket/prefix" in body or "--workspace" not in body, name
    assert "run:RUN_ID[/step-N]" in text


@pytest.mark.parametrize("stage", MOST_USED)
def test_a_stages_help_lists_its_most_used_settings(ended: Ended, stage: str) -> None:
    assert ended(stage, "--help") == 0
    for key in MOST_USED[stage]:
        assert f"--{key}=" in ended.out
        assert " ".join((field_of(key).description or "").split()) in " ".join(ended.out.split())
    assert "`hvkf settings " in ended.out


def test_settings_lists_a_section_and_the_sections(ended: Ended) -> None:
    assert ended("settings") == 0
    assert "render " in ended.out
    assert ended("settings", "hparams.ema") == 0
    assert "--hparams.ema.ema_decay=0.99" in ended.out
    assert "--hparams.learning_rate" not in ended.out
    assert "There is no section 'rendr'" in ended.refused("settings", "rendr")


def test_hvkf_alone_shows_its_help_and_no_error(ended: Ended) -> None:
    assert ended() == 0
    assert "Commands:" in ended.out
    assert ended.err == ""


def test_the_version_is_told(ended: Ended) -> None:
    assert ended("--version") == 0
    assert re.fullmatch(r"hvkf \d+\.\d+\.\d+\+[0-9a-f]{12}\n", ended.out)


def test_two_sentences_have_a_full_stop_between_them(ended: Ended) -> None:
    said = ended.refused("train", "--learning_rate=1")
    assert "No such option: --learning_rate. `hvkf train --help` lists what there is. The" in said
    assert said.endswith("The setting is --hparams.learning_rate=VALUE.")


def test_words_are_completed() -> None:
    environment = {
        **os.environ,
        "_HVKF_COMPLETE": "complete_bash",
        "COMP_WORDS": "hvkf in",
        "COMP_CWORD": "1",
    }
    program = os.path.join(os.path.dirname(sys.executable), "hvkf")
    found = subprocess.run([program], capture_output=True, text=True, env=environment, check=False)
    assert found.stdout.split() == ["ingest", "infer"]


@pytest.mark.parametrize("words", [["--quiet", "gc"], ["gc", "--quiet"]])
def test_general_options_stand_anywhere(
    ended: Ended, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: "os.PathLike[str]"
) -> None:
    monkeypatch.setenv("HVKF_VERBOSITY", "normal")
    open_store(str(tmp_path))
    assert ended(*words, f"--workspace={tmp_path}") == 0
    assert os.environ["HVKF_VERBOSITY"] == "quiet"
    assert "opposites" in ended.refused(*words, "--verbose")


def test_a_shell_completes_commands() -> None:
    words = {"_HVKF_COMPLETE": "complete_bash", "COMP_WORDS": "hvkf ren", "COMP_CWORD": "1"}
    command = [str(Path(sys.executable).parent / "hvkf")]
    answer = subprocess.run(command, env={**os.environ, **words}, capture_output=True, check=True)
    assert answer.stdout.split() == [b"render", b"renders"]

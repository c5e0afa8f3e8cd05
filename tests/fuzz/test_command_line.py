"""Whole command lines, as a tired person or a broken script writes them."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hvkf import cli
from hvkf.jobs.manifest import read_numbers
from hvkf.storage import FORMAT_FILE
from tests.fuzz.bounds import fuzzed, in_bounds

CODES = {0, 2, 65, 70, 75, cli.INTERRUPTED_CODE}
COMMANDS = [
    *("gc", "verify", "registry list", "registry show x", "registry rollback x", "registry diff x"),
    *("registry promote x --lora run:none", "cache run --plan p", "train commit --plan p"),
    *("gate --evaluation x", "fetch x out", "picture train x", "cache plan", "encode plan"),
    *("export-vbench x out", "jobs", "registry", "jobs reap", "submit x", "run --dry-run"),
]
WORDS = [
    *("--config", "--config=-", "--config=/", "--config=c.yaml", "--workspace", "--workspace=w"),
    *("--workspace=", "--workspace=s3://", "--workspace=http://x", "--workspace=c.yaml"),
    *("--workspace=c.yaml/x", "--plan", "--plan=..", "--parts=0-99999999", "--parts=-", "--yes"),
    *("--index=-1", "--index=x", "--older-than-hours=nan", "--older-than-hours=-1", "--delete"),
    *("--cache.head_frame", "--cache.head_frame=1", "--cache.head_frame=x", "--x.y=z", "--lora"),
    *(
        "--network.lora_rank.x=1",
        "--render.negative_prompt=a: b: c",
        "--help",
        "--",
        "-",
        "--=",
        "",
    ),
    *("--to=999999999999999999999", "--note=[/x]", "--by=é", "[/red]", "--name", "-x", "\ud800"),
    *(
        "--evaluation=../..",
        "--evaluation=a\\b",
        "run:x/step-y",
        "registry:x@y",
        "workspace:..",
        "*",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder to be in, and to leave nothing but workspaces in."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("here"))
    Path("c.yaml").write_text("workspace: w\n")
    for command in COMMANDS:  # what they import takes longer than what is looked at here
        cli.run_command([*command.split(), "--workspace=w"])
    yield
    others = [path for path in Path.cwd().iterdir() if not (path / FORMAT_FILE).exists()]
    os.chdir(before)
    assert [path.name for path in others] == ["c.yaml"]


@fuzzed(320)
@given(
    st.sampled_from(COMMANDS),
    # Not the current folder, which may be a workspace.
    st.lists(
        st.sampled_from(WORDS)
        | st.text(max_size=8).filter(lambda word: not word or not set(word) <= set("./")),
        max_size=4,
    ),
)
@example("submit x", ["--workspace="])
@example("cache run --plan p", ["--workspace="])
@example("submit x", ["--workspace", " "])
@example("gc", ["--workspace=c.yaml"])
@example("cache run --plan p", ["--workspace=w", "--parts=0-99999999"])
@example("registry show x", ["--workspace=w", "\0"])
@example("gc", ["--workspace=" + "x" * 5000])
def test_a_command_line_ends_with_one_sentence(command: str, words: list[str]) -> None:
    said, errors = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(errors),
        in_bounds(),
    ):
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"workspace: w\n")))
        code = cli.run_command([*command.split(), *words])
    text = errors.getvalue()
    assert code in CODES - {70}, text
    assert "Traceback" not in text
    if code:
        assert text.startswith("error: ")
        assert len(text.splitlines()[-1]) < 700


@fuzzed(1200)
@given(
    st.text(alphabet="0123456789-,. x²٣", max_size=20)
    | st.from_regex(r"[0-9]{0,30}-[0-9]{0,30}(,[0-9]{1,9})*", fullmatch=True),
    st.integers(0, 100),
)
@example("0-99999999", 3)
@example("0," * 100_000, 3)
def test_parts_are_numbers_of_the_plan_or_refused(text: str, num_parts: int) -> None:
    with in_bounds():
        assert set(read_numbers(text, range(num_parts))) <= set(range(num_parts))

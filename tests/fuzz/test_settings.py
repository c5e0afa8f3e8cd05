"""Settings from hostile files, standard input and command lines."""

import io
import tempfile
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from hvkf.config import Config
from hvkf.config_file import known_keys, load_config
from hvkf.errors import ConfigError
from tests.fuzz.bounds import fuzzed, in_bounds

ODD_TEXTS = [
    *("a: b: c", "[x", '"', "*x", "!!int x", "&a", "{", "}", "- 1", "?", "|", ">", "%", "@", "`"),
    *("", " ", "null", "None", "~", "no", "true", "nan", "inf", "-inf", "1e999", "0x10", "1_0"),
    *("2026-11-29", "12:30:45", "1" * 5000, "x" * 100_000, "[" * 5000, "a,b", "[a, b]", "{a: 1}"),
    *("#2", "a #2", "é", "\ud800", "\x01", "\t", "\n", "../..", "s3://", "~nobody-here/x", "."),
    *(
        "[[a]]",
        "[null]",
        "{null: 1}",
        "[{op: add}]",
        "[*x]",
        "<<: {a: 1}",
        "!!bool x",
        "!!binary x",
    ),
]
KEYS = st.sampled_from(known_keys())
TEXTS = st.sampled_from(ODD_TEXTS) | st.text(max_size=30)


@fuzzed(1600)
@given(KEYS, TEXTS)
@example("render.negative_prompt", "a: b: c")
@example("experiment.run_id", "2026-11-29")
@example("workspace", "\ud800")
@example("jobs.train.env.A", "\ud800")
@example("jobs.train.env", "{A: 1, A: 2}")
@example("jobs.train.pod_patch", "[{op: add, path: /a, value: &a [*a]}]")
def test_an_override_is_taken_or_refused_in_a_sentence(key: str, text: str) -> None:
    with in_bounds():
        load_config(None, [f"--{key}={text}"]).model_dump_json()


@fuzzed(1200)
@given(st.text(max_size=40), st.text(alphabet="abcdefghij_.-=", max_size=60), TEXTS)
@example("--", "workspace.x.y", "1")
@example("--", "." * 60, "1")
@example("--", "jobs.train.env.A.b", "1")
def test_an_odd_name_of_an_override_is_refused(dashes: str, name: str, text: str) -> None:
    with in_bounds():
        load_config(None, [f"{dashes}{name}={text}", "--network.lora_rank=4"])


def valid_text() -> str:
    settings: dict[str, Any] = yaml.safe_load(
        (Path(__file__).parents[2] / "configs" / "tiny.yaml").read_text()
    )
    return yaml.safe_dump({**settings, "jobs": {"train": {"env": {"A": "b"}}}})


VALID = valid_text()
PIECES = st.sampled_from(
    [*ODD_TEXTS, "&a ", "*a", "<<: *a", ": ", "- ", "\n  ", "!!set ", "\0", "\ufeff", "---\n"]
)
MUTATED = st.builds(
    lambda start, end, piece: VALID[:start] + piece + VALID[max(start, end) :],
    st.integers(0, len(VALID)),
    st.integers(0, len(VALID)),
    PIECES,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(ODD_TEXTS[:40]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n" for old, new in pairwise("abcdefghijklmnopq")
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [*{old}, *{old}]}}\n" for old, new in pairwise("abcdefghijklmnopq")
)
FOUND = [
    *("workspace: !!bool x", "workspace: !!int x", "workspace: !!float x", "workspace: !!int ''"),
    *("[" * 100_000, "{a: " * 5000, "- " * 5000, "a: &a [*a]", BOMB, MERGES, "? [a]\n: b", "1: 2"),
    *(
        'workspace: "a\\0b"',
        "jobs: {train: {env: {A: 0x" + "f" * 6000 + "}}}",
        "a: 1\nb: 2\n" * 9999,
    ),
    *("workspace: a\nworkspace: b", "null: 1", "!!set {a}", "!!python/object:os.system {}", "=: 1"),
    *("{? {a: 1}: 2}", "a: b: c", "- x", "x" * 300_000, "render: {seed: .nan}", "a: " + "1" * 5000),
]


@fuzzed(480)
@given(MUTATED)
def test_a_mutated_file_is_taken_or_refused_in_a_sentence(text: str) -> None:
    read(text)


@pytest.mark.parametrize("text", FOUND, ids=range(len(FOUND)))
def test_a_file_that_was_found_to_break_is_refused(text: str) -> None:
    read(text)


def read(text: str) -> None:
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(text.encode("utf-8", "surrogatepass"))
        file.flush()
        with in_bounds():
            load_config(Path(file.name), ["--network.lora_alpha=1"])


@fuzzed(800)
@given(KEYS, VALUES)
def test_a_value_of_another_kind_is_taken_or_refused_in_a_sentence(key: str, value: Any) -> None:
    *parents, last = key.split(".")
    settings: dict[str, Any] = {last: value}
    for parent in reversed(parents):
        settings = {parent: settings}
    read(yaml.safe_dump(settings))


@fuzzed(320)
@given(st.binary(max_size=60) | st.sampled_from([b"\xff", b"\xef\xbb\xbfworkspace: a", b"\0"]))
def test_standard_input_is_taken_or_refused_in_a_sentence(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        with in_bounds():
            load_config(None, from_input=True)


def test_what_is_valid_stays_valid() -> None:
    assert isinstance(Config.model_validate(yaml.safe_load(VALID)), Config)
    with pytest.raises(ConfigError):
        load_config(None, ["--x=1"])

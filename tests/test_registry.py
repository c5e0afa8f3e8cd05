"""The registry: one conditional put decides, its history tells why, its LoRAs stay."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvkf.code_version import code_version
from hvkf.errors import BadInput, CorruptData, HvkfError, TryAgain
from hvkf.garbage import find_garbage
from hvkf.loras import local_lora_file, resolve_lora
from hvkf.registry import (
    Candidate,
    Registered,
    find_registered,
    keep_lora,
    lora_path,
    names,
    promote,
    read_registered,
    rollback,
)
from hvkf.storage import FolderStore, file_sha256, open_store
from hvkf.verify import verify_workspace
from tests.commands import run_command
from tests.finished_runs import write_run
from tests.workspaces import GOLDEN

LORA = GOLDEN / "lora_r4_a8.sft"


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    open_store(str(tmp_path / "workspace"))
    return FolderStore(tmp_path / "workspace")


def kept(store: FolderStore, content: str) -> Candidate:
    """Keep a file of this content as if it were a LoRA, and make a candidate of it."""
    file = store.root.parent / f"{content}.safetensors"
    file.write_text(content)
    keep_lora(store, file, file_sha256(file))
    return Candidate(lora_sha256=file_sha256(file), origin=f"run:{content}", decided_by="a test")


def test_a_promotion_is_the_newest_version_of_a_history(store: FolderStore) -> None:
    first = promote(store, "house", kept(store, "one"), over=0)
    second = promote(store, "house", kept(store, "two"), over=1)
    registered = read_registered(store, "house")
    assert registered.history == (first, second)
    assert registered.in_use == second
    assert (second.version, second.origin, second.code_version) == (2, "run:two", code_version())
    assert names(store) == ["house"]


def test_a_decision_against_an_older_version_does_not_win(store: FolderStore) -> None:
    promote(store, "house", kept(store, "one"), over=0)
    promote(store, "house", kept(store, "two"), over=1)
    with pytest.raises(TryAgain, match="went from version 1 to 2 while this was decided"):
        promote(store, "house", kept(store, "three"), over=1)
    assert read_registered(store, "house").in_use.origin == "run:two"


def test_the_same_decision_again_changes_nothing(store: FolderStore) -> None:
    candidate = kept(store, "one")
    assert promote(store, "house", candidate, over=0) == promote(store, "house", candidate, over=0)
    assert len(read_registered(store, "house").history) == 1


RACER = """
import sys, time
from pathlib import Path
from hvkf.errors import TryAgain
from hvkf.registry import Candidate, promote
from hvkf.storage import FolderStore
root, sha256, number = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
candidate = Candidate(lora_sha256=sha256, origin=number, decided_by="race")
(root.parent / f"ready-{number}").touch()
while not (root.parent / "start").exists():
    time.sleep(0.001)
try:
    promote(FolderStore(root), "house", candidate, over=1)
    print(number)
except TryAgain:
    pass
"""


@pytest.mark.slow
def test_of_many_processes_that_promote_at_once_one_wins(store: FolderStore) -> None:
    promote(store, "house", kept(store, "base"), over=0)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(store.root), sha256, str(number)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
        for sha256 in [kept(store, str(number)).lora_sha256]
    ]
    while len(list(store.root.parent.glob("ready-*"))) < len(racers):
        assert all(racer.poll() is None for racer in racers)
        time.sleep(0.01)
    (store.root.parent / "start").touch()
    won = [number for racer in racers if (number := racer.communicate(timeout=60)[0].strip())]
    assert [racer.returncode for racer in racers] == [0] * len(racers)
    history = read_registered(store, "house").history
    assert [entry.version for entry in history] == [1, 2]
    assert won == [history[-1].origin]


class Rival(FolderStore):
    """A workspace in which another promotion comes between every reading and writing."""

    def put_if(self, path: str, data: bytes, expected: bytes | None) -> None:
        rival = FolderStore(self.root)
        registered = Registered.from_json(rival.read(path))
        version = registered.in_use.model_copy(update={"version": registered.in_use.version + 1})
        history = (*registered.history, version)
        rival.put(path, registered.model_copy(update={"history": history}).to_json())
        super().put_if(path, data, expected)


def test_one_that_comes_between_reading_and_writing_is_not_overwritten(store: FolderStore) -> None:
    promote(store, "house", kept(store, "one"), over=0)
    candidate = kept(store, "two")
    with pytest.raises(TryAgain, match="went from version 1 to 2"):
        promote(Rival(store.root), "house", candidate, over=1)
    with pytest.raises(HvkfError):
        rollback(Rival(store.root), "house", to=1, decided_by="a test")
    assert {entry.origin for entry in read_registered(store, "house").history} == {"run:one"}


class LostAnswer(FolderStore):
    """A workspace whose conditional write succeeds but is repeated, as by a client's retry."""

    def put_if(self, path: str, data: bytes, expected: bytes | None) -> None:
        super().put_if(path, data, expected)
        super().put_if(path, data, expected)


def test_a_write_whose_answer_was_lost_counts(store: FolderStore) -> None:
    promote(store, "house", kept(store, "one"), over=0)
    promote(LostAnswer(store.root), "house", kept(store, "two"), over=1)
    assert [v.origin for v in read_registered(store, "house").history] == ["run:one", "run:two"]


def test_rolling_back_restores_what_was_in_use_before(store: FolderStore) -> None:
    for number, content in enumerate(("one", "two", "three")):
        promote(store, "house", kept(store, content), over=number)
    back = rollback(store, "house", decided_by="a person", note="it flickers")
    assert (back.version, back.restores, back.origin) == (4, 2, "run:two")
    assert (back.decided_by, back.note) == ("a person", "it flickers")
    again = rollback(store, "house", decided_by="a person")
    assert (again.restores, again.origin) == (1, "run:one")
    with pytest.raises(BadInput, match="no version before 1"):
        rollback(store, "house", decided_by="a person")
    with pytest.raises(BadInput, match="no version 9, but 1 to 5"):
        rollback(store, "house", to=9, decided_by="a person")
    forward = rollback(store, "house", to=3, decided_by="a person")
    assert (forward.version, forward.origin) == (6, "run:three")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.sampled_from("abc"), st.integers(1, 8), st.none()), max_size=8))
def test_whatever_is_done_the_history_only_grows_and_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, actions: list[str | int | None]
) -> None:
    store = FolderStore(tmp_path_factory.mktemp("registry") / "workspace")
    seen: tuple[object, ...] = ()
    for action in actions:
        try:
            if isinstance(action, str):
                candidate = kept(store, action)
                promote(store, "house", candidate, over=len(seen))
            else:
                rollback(store, "house", to=action, decided_by="a test")
        except BadInput:
            continue
        history = read_registered(store, "house").history
        assert history[: len(seen)] == seen
        assert [entry.version for entry in history] == list(range(1, len(history) + 1))
        assert store.exists(history[-1].lora)
        seen = history


def test_a_lora_that_is_gone_or_changed_is_said(store: FolderStore) -> None:
    promote(store, "house", kept(store, "one"), over=0)
    promote(store, "house", kept(store, "two"), over=1)
    path = read_registered(store, "house").in_use.lora
    store.put(path, b"other")
    with pytest.raises(CorruptData, match=r"'house' version 2 has the sha256 .*registry rollback"):
        resolve_lora("registry:house", store)
    store.delete(path)
    with pytest.raises(CorruptData, match=r"LoRA of 'house' version 2 is gone: restore"):
        resolve_lora("registry:house", store)
    store.delete(read_registered(store, "house").history[0].lora)
    with pytest.raises(CorruptData, match=r"version 1 is gone"):
        rollback(store, "house", decided_by="a test")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            "registry:other",
            r"Nothing is registered as 'other' .*there: house.*registry prom",
        ),
        ("registry:house@7", r"'house' has no version 7, but 1 to 1"),
        ("registry:house@new", r"'new' is no version: write registry:house@3"),
        ("registry:../x", r"cannot be a registry's name"),
    ],
)
def test_a_name_that_is_not_there_is_refused_with_the_fix(
    store: FolderStore, spec: str, sentence: str
) -> None:
    promote(store, "house", kept(store, "one"), over=0)
    with pytest.raises(BadInput, match=sentence):
        resolve_lora(spec, store)


def test_a_registered_name_means_the_version_in_use_and_says_which(store: FolderStore) -> None:
    promote(store, "house", kept(store, "one"), over=0)
    promote(store, "house", kept(store, "two"), over=1)
    lora = resolve_lora("registry:house", store)
    assert lora.name == "registry:house@2"
    file = local_lora_file(lora, store)
    assert file is not None
    assert file.read_text() == "two"
    assert resolve_lora("registry:house@1", store).name == "registry:house@1"


def test_a_promoted_lora_outlives_its_run_and_what_was_never_promoted_goes(
    store: FolderStore, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(store, "nightly")
    promoted = ["registry", "promote", "house", "--workspace", str(store.root)]
    run_command(*promoted, "--lora", "run:nightly", "--by", "me", "--note", "the first")
    assert "house uses version 1, run:nightly/step-00000004" in capsys.readouterr().out
    shutil.rmtree(store.root / "runs")
    lora = resolve_lora("registry:house", store)
    assert (lora.run_id, lora.checkpoint) == ("nightly", "step-00000004")
    left = kept(store, "never promoted")
    assert [file.path for file in find_garbage(store, 0).files] == [lora_path(left.lora_sha256)]
    assert verify_workspace(store).faults == []
    assert verify_workspace(store).counts["kept LoRAs"] == 2
    store.put(str(lora.location).removeprefix("workspace:"), b"x")
    assert "has other bytes" in verify_workspace(store)[1][0]


def test_the_commands_tell_the_history_and_what_differs(
    store: FolderStore, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--workspace", str(store.root)]
    run_command("registry", "list", *place)
    assert "nothing is registered" in capsys.readouterr().out
    promote(store, "house", kept(store, "one"), over=0)
    better = kept(store, "two").model_copy(update={"figures": {"psnr": 30.5}})
    promote(store, "house", better, over=1)
    run_command("registry", "diff", "house", *place)
    said = capsys.readouterr().out
    assert "house 1 -> 2" in said
    assert "figures.psnr: - -> 30.5" in said
    assert "origin: run:one -> run:two" in said
    run_command("registry", "rollback", "house", *place, "--note", "too dark")
    run_command("registry", "show", "house", *place)
    said = capsys.readouterr().out
    assert "version 3, which is version 1 again" in said
    assert "back to 1" in said
    assert "too dark" in said
    run_command("registry", "list", *place)
    assert "house *   3" in capsys.readouterr().out
    run_command("registry", "show", "house", "--json", *place)
    assert Registered.from_json(capsys.readouterr().out.encode()) == find_registered(store, "house")


def test_a_model_card_lies_beside_the_promoted_lora(store: FolderStore) -> None:
    write_run(store, "nightly")
    run_command(
        "registry", "promote", "house", "--workspace", str(store.root), "--lora", "run:nightly"
    )
    version = read_registered(store, "house").in_use
    card = store.read(f"registry/loras/{version.lora_sha256}/README.md").decode()
    assert card.startswith("---\nlibrary_name: diffusers\n")
    assert version.lora_sha256 in card
    assert "hvkf render --config FILE --render.lora=registry:house" in card

"""Naming LoRAs: what is found, and what is refused with which sentence."""

import os
import shutil
from pathlib import Path

import pytest

from hvkf.errors import BadInput, CorruptData
from hvkf.loras import Lora, local_lora_file, resolve_lora
from hvkf.storage import FolderStore, file_sha256, object_sha256
from tests.finished_runs import write_checkpoint, write_run
from tests.workspaces import GOLDEN

LORA = GOLDEN / "lora_r4_a8.sft"


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "workspace")


class Elsewhere(FolderStore):
    """A workspace whose objects do not lie on this machine, as S3's do not."""

    def local_path(self, path: str) -> Path | None:
        return None


def test_none_is_the_base_model(store: FolderStore) -> None:
    lora = resolve_lora("none", store)
    assert (lora.location, lora.sha256) == (None, None)
    assert local_lora_file(lora, store) is None


def test_a_run_means_the_checkpoint_that_it_ended_with(store: FolderStore) -> None:
    write_checkpoint(store, "nightly", 2, scale=0.5)
    path = write_run(store, "nightly", 4)
    lora = resolve_lora("run:nightly", store)
    assert (lora.run_id, lora.checkpoint) == ("nightly", "step-00000004")
    assert lora.name == "run:nightly/step-00000004"
    assert lora.sha256 == object_sha256(store, path)
    assert local_lora_file(lora, store) == store.root / path


def test_a_checkpoint_of_a_run_is_named_by_its_step(store: FolderStore) -> None:
    folder = write_checkpoint(store, "nightly", 2, scale=0.5)
    write_run(store, "nightly", 4)
    early = resolve_lora("run:nightly/step-00000002", store)
    assert early.location == f"workspace:{folder}/pytorch_lora_weights.safetensors"
    assert early.sha256 != resolve_lora("run:nightly", store).sha256


def test_a_file_and_its_folder_name_the_same_lora(store: FolderStore, tmp_path: Path) -> None:
    shutil.copy(LORA, tmp_path / "mine.sft")
    by_file = resolve_lora(str(tmp_path / "mine.sft"), store)
    by_folder = resolve_lora(str(tmp_path), store)
    assert by_file.sha256 == by_folder.sha256 == file_sha256(LORA)
    assert local_lora_file(by_file, store) == local_lora_file(by_folder, store)


def test_a_file_or_folder_of_the_workspace_is_found(store: FolderStore) -> None:
    store.upload(LORA, "loras/mine/v1.sft")
    by_file = resolve_lora("workspace:loras/mine/v1.sft", store)
    by_folder = resolve_lora("workspace:loras/mine", store)
    assert by_file.location == by_folder.location == "workspace:loras/mine/v1.sft"
    assert by_file.sha256 == file_sha256(LORA)


def test_a_lora_of_a_workspace_elsewhere_is_fetched_once_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = Elsewhere(tmp_path / "workspace")
    lora = resolve_lora(f"workspace:{write_run(store, 'nightly')}", store)
    file = local_lora_file(lora, store)
    assert file is not None
    assert file.is_relative_to(tmp_path / "cache")
    assert file_sha256(file) == lora.sha256
    store.delete(str(lora.location).removeprefix("workspace:"))
    assert local_lora_file(lora, store) == file

    file.write_bytes(b"other")
    with pytest.raises(CorruptData, match="changed since"):
        local_lora_file(lora, store)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("run:nightly", r"no run 'nightly' .*finished runs: other.*hvkf train"),
        ("run:begun", r"'begun' has not finished.*run:begun/step-00000002"),
        ("run:other/step-00000009", r"no whole checkpoint .*those of the run: step-00000004"),
        ("run:other/latest", r"'latest' names no checkpoint: write run:RUN_ID/step-00000500"),
        ("run:..", r"leaves the workspace"),
        ("workspace:loras", r"holds 0 LoRA files where one is expected"),
        ("workspace:../loras", r"leaves the workspace"),
        ("no/such/file.safetensors", r"no LoRA 'no/such/file.safetensors': give"),
        ("pickled", r"is not a .safetensors or .sft file; pickled weights are never loaded"),
        ("two", r"holds 2 LoRA files where one is expected: name the file"),
    ],
)
def test_a_lora_that_is_not_there_is_refused_with_the_fix(
    store: FolderStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spec: str,
    sentence: str,
) -> None:
    write_run(store, "other")
    write_checkpoint(store, "begun", 2)
    (tmp_path / "two").mkdir()
    for name in ("a.sft", "b.safetensors"):
        shutil.copy(LORA, tmp_path / "two" / name)
    (tmp_path / "lora.pt").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=sentence):
        resolve_lora("lora.pt" if spec == "pickled" else spec, store)


def test_a_checkpoint_without_its_record_does_not_count(store: FolderStore) -> None:
    folder = write_checkpoint(store, "nightly", 4)
    store.delete(f"{folder}/commit.json")
    with pytest.raises(BadInput, match="no run 'nightly'"):
        resolve_lora("run:nightly", store)
    with pytest.raises(BadInput, match="no whole checkpoint"):
        resolve_lora("run:nightly/step-00000004", store)


def test_a_file_that_vanished_since_planning_is_named(store: FolderStore, tmp_path: Path) -> None:
    lora = Lora(name="gone", location=str(tmp_path / "gone.sft"), sha256="0")
    with pytest.raises(BadInput, match=r"LoRA gone is gone: there is no file .*gone\.sft"):
        local_lora_file(lora, store)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("~nobody-of-this-name/x.sft", "home directory"),
        ("x" * 300 + ".sft", "name too long"),
        ("workspace:" + "x" * 300, "name too long"),
        ("run:" + "x" * 300, "name too long"),
        ("registry:x@" + "9" * 5000, "is no version"),
        ("a\0b.sft", "no file's name can have"),
    ],
)
def test_a_name_that_no_file_can_have_is_refused_in_a_sentence(
    store: FolderStore, spec: str, words: str
) -> None:
    (store.root / "runs").mkdir(parents=True)
    with pytest.raises(BadInput, match=words) as caught:
        resolve_lora(spec, store)
    assert len(str(caught.value)) < 600


def test_a_named_pipe_is_no_lora_and_nothing_waits_for_it(
    store: FolderStore, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.sft")
    with pytest.raises(BadInput, match="There is no LoRA"):
        resolve_lora(str(tmp_path / "pipe.sft"), store)
    (store.root / "loras").mkdir(parents=True)
    os.mkfifo(store.root / "loras" / "pipe.sft")
    with pytest.raises(BadInput, match="named pipe"):
        resolve_lora("workspace:loras", store)

"""A checkpoint of a workspace is fetched once by all the processes that share a cache."""

import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from hvkf.errors import BadInput
from hvkf.model_source import (
    WHOLE_FILE_LIMIT_BYTES,
    known_shift,
    model_folder_or_hub_id,
    model_identity,
    read_model_file,
)
from hvkf.settings.experiment import ModelConfig
from hvkf.stages.render_tasks import models_identity
from hvkf.storage import FolderStore
from hvkf.storage_s3 import S3Store
from tests.s3_server import S3Service
from tests.workspaces import TINY, checkpoint_with_shift


class SlowStore(S3Store):
    """Counts downloads, which take a while."""

    counts: Counter[str]

    def download(self, path: str, file: Path) -> None:
        self.counts[path] += 1
        time.sleep(0.2)
        super().download(path, file)


def test_processes_that_start_at_once_fetch_each_file_once(
    s3: S3Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = SlowStore(s3.new_url())
    store.counts = Counter()
    names = [f"models/tiny/transformer/{n}.json" for n in range(3)]
    for name in names:
        store.put(name, name.encode())
    model = ModelConfig(pretrained_model_name_or_path="workspace:models/tiny")
    folders: list[str] = []
    # Each thread opens the lock's file anew, as processes do.
    threads = [
        threading.Thread(target=lambda: folders.append(model_folder_or_hub_id(model, store)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.counts == Counter(names)
    (folder,) = set(folders)
    for name in names:
        file = Path(folder) / Path(name).relative_to("models/tiny")
        assert file.read_bytes() == name.encode()


class MeasuredStore(S3Store):
    """Counts the bytes that are read."""

    num_bytes = 0

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        data = super().read(path, max_bytes)
        self.num_bytes += len(data)
        return data

    def read_range(self, path: str, start: int, size: int) -> bytes:
        data = super().read_range(path, start, size)
        self.num_bytes += len(data)
        return data

    def download(self, path: str, file: Path) -> None:
        pytest.fail(f"{path} is fetched only to be named")


def test_a_checkpoint_in_s3_is_named_as_in_a_folder_by_a_little_of_its_weights(
    s3: S3Service, tmp_path: Path
) -> None:
    weights = bytearray(WHOLE_FILE_LIMIT_BYTES + 5)
    weights[0], weights[-1] = 1, 2
    contents = {
        "transformer/weights.safetensors": bytes(weights),
        "transformer/config.json": b"{}",
        "transformer/empty": b"",
        "transformer/a/b": b"1",
        "transformer/a-b": b"2",
        "tokenizer/tokenizer.json": b"tokens",
        "vae/unused.safetensors": b"3",
    }
    store = MeasuredStore(s3.new_url())
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
        store.upload(tmp_path / name, f"models/tiny/{name}")
    there = ModelConfig(pretrained_model_name_or_path="workspace:models/tiny")
    here = ModelConfig(pretrained_model_name_or_path=str(tmp_path))
    elsewhere = FolderStore(tmp_path / "workspace")
    parts = ("transformer", "tokenizer")
    assert model_identity(there, store, parts) == model_identity(here, elsewhere, parts)
    assert store.num_bytes < 4 << 20
    name = "tokenizer/tokenizer.json"
    assert read_model_file(there, store, name) == b"tokens"
    assert read_model_file(here, elsewhere, name) == b"tokens"
    assert read_model_file(there, store, "tokenizer/absent") is None
    with pytest.raises(BadInput, match="models/tiny lacks the folder 'text_encoder'"):
        model_identity(there, store, ["text_encoder"])


def test_the_packaged_checkpoint_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ModelConfig(pretrained_model_name_or_path="hvkf-tiny")
    store = FolderStore(tmp_path / "workspace")
    folder = Path(model_folder_or_hub_id(model, store))
    assert folder.parts[-3:] == ("hvkf", "assets", "hvkf-tiny")
    identity = model_identity(model, store, ["transformer", "vae"])
    as_folder = ModelConfig(pretrained_model_name_or_path=str(folder))
    assert identity == model_identity(as_folder, store, ["transformer", "vae"])
    assert read_model_file(model, store, "tokenizer/tokenizer.json") is not None
    own = tmp_path / "hvkf-tiny"  # a folder of that name is what a person sees there
    own.mkdir()
    assert model_folder_or_hub_id(model, store) == "hvkf-tiny"


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "x" * 5000, "a\0b", "hvkf-tinny"])
def test_a_checkpoint_that_no_folder_can_be_is_refused_in_a_sentence(
    tmp_path: Path, name: str
) -> None:
    model = ModelConfig.model_construct(pretrained_model_name_or_path=name)
    with pytest.raises(BadInput) as caught:
        model_folder_or_hub_id(model, FolderStore(tmp_path))
    assert len(str(caught.value)) < 500


def test_the_shift_is_read_from_the_checkpoint_or_set(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    shifted = checkpoint_with_shift(tmp_path / "models" / "shifted", 17)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name, set_to, expected in [
        (str(shifted), None, 17.0),
        ("workspace:models/shifted", None, 17.0),
        (str(shifted), 3.0, 3.0),
        ("hvkf-tiny", None, 7.0),
        (str(bare), None, 7.0),
        ("owner/model", None, None),
        ("owner/model", 9.0, 9.0),
    ]:
        model = ModelConfig(pretrained_model_name_or_path=name, flow_shift=set_to)
        assert known_shift(model, store) == expected


@pytest.mark.parametrize("shift", ["7", None, 0, -1, float("nan"), float("inf"), True, [7]])
def test_a_shift_that_is_no_positive_number_is_refused(tmp_path: Path, shift: object) -> None:
    source = checkpoint_with_shift(tmp_path / "odd", shift)
    model = ModelConfig(pretrained_model_name_or_path=str(source))
    with pytest.raises(BadInput, match=r"scheduler_config\.json of .*odd.* model\.flow_shift"):
        known_shift(model, FolderStore(tmp_path))


def test_only_another_shift_than_hunyuanvideos_names_renders_anew(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)

    def named(source: Path, **settings: float) -> str:
        model = ModelConfig(pretrained_model_name_or_path=str(source), **settings)
        return models_identity(model, store, "fp32")

    shifted = checkpoint_with_shift(tmp_path / "shifted", 17)
    unset = named(TINY)
    assert named(TINY, flow_shift=7.0) == unset == named(shifted, flow_shift=7.0)
    assert named(TINY, flow_shift=17.0) == named(shifted) != unset

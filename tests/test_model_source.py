"""A checkpoint of a workspace is fetched once by all the processes that share a cache."""

import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from hvkf.model_source import model_folder_or_hub_id
from hvkf.settings.experiment import ModelConfig
from hvkf.storage_s3 import S3Store
from tests.s3_server import S3Service


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

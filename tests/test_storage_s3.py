"""The workspace in S3 keeps the promises of the one in a folder, on a real service."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError

from hvkf.errors import AlreadyExists
from hvkf.storage import Store, open_store
from tests.s3_server import s3_server


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    import s3fs

    with s3_server(tmp_path_factory.mktemp("s3")) as environment:
        os.environ.update(environment)
        deadline_s = time.monotonic() + 30
        while True:
            try:
                s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
                break
            except (OSError, BotoCoreError):  # it answers before it is ready
                assert time.monotonic() < deadline_s
                time.sleep(0.5)
        yield open_store("s3://bucket/prefix")
        for name in environment:
            del os.environ[name]


def test_what_was_put_is_read_back(store: Store) -> None:
    store.put("a/b.json", b"one")
    store.put("a/b.json", b"two")
    assert store.read("a/b.json") == b"two"
    assert store.exists("a/b.json")
    assert not store.exists("a")
    assert store.stat("a/b.json").size == 3


def test_a_missing_object_is_a_file_not_found_error(store: Store) -> None:
    for look in (store.read, store.stat):
        with pytest.raises(FileNotFoundError):
            look("missing")
    store.delete("missing")
    assert list(store.list("nothing")) == []


def test_put_new_writes_once(store: Store) -> None:
    store.put_new("once", b"first")
    with pytest.raises(AlreadyExists):
        store.put_new("once", b"second")
    assert store.read("once") == b"first"


def test_a_file_goes_up_and_comes_down(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(6 << 20))
    store.upload(source, "files/one")
    store.download("files/one", tmp_path / "back" / "one")
    assert (tmp_path / "back" / "one").read_bytes() == source.read_bytes()
    assert list(store.list("files")) == ["files/one"]


def test_a_workspace_is_opened_again(store: Store) -> None:
    assert open_store("s3://bucket/prefix").read("hvkf-workspace") == b"1\n"

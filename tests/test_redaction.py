"""Names and passwords in addresses are in no message, whoever wrote it."""

import logging

import pytest

from flows import server
from hvkf import storage_s3
from hvkf.errors import BadInput, HvkfError, TryAgain
from hvkf.redaction import without_userinfo
from hvkf.s3_connection import file_system
from hvkf.storage_s3 import S3Store

SECRET = "S3cr3t"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://name:{SECRET}@host:9/a", "http://host:9/a"),
        (f"Could not connect to 'https://{SECRET}@host/b@c'", "Could not connect to 'https://host/b@c'"),
        (f"s3://k:{SECRET}@x@bucket/prefix", "s3://bucket/prefix"),
        ("mail a@b.example about s3://bucket/a@b", "mail a@b.example about s3://bucket/a@b"),
    ],
)  # fmt: skip
def test_an_address_loses_its_name_and_password(text: str, shown: str) -> None:
    assert without_userinfo(text) == shown
    assert str(HvkfError(text)) == shown
    assert str(BadInput(text)) == shown


def test_an_s3_services_address_is_shown_without_its_password(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="hvkf")
    monkeypatch.setattr(storage_s3, "FIRST_PATIENCE_S", 0.3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://name:{SECRET}@127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
    file_system.cache_clear()
    with pytest.raises(TryAgain, match=r"http://127\.0\.0\.1:9\)") as caught:
        S3Store("s3://bucket/prefix").read("file")
    file_system.cache_clear()
    assert SECRET not in str(caught.value)
    assert SECRET not in caplog.text


def test_prefects_address_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "AWAY_TIMEOUT_S", -1.0)
    for address in (f"http://name:{SECRET}@127.0.0.1:9/api", f"http://name:{SECRET}@127.0.0.1/api"):
        monkeypatch.setenv("PREFECT_API_URL", address)
        with pytest.raises(TryAgain, match=r"http://127\.0\.0\.1") as caught:
            server.wait_for_server()
        assert SECRET not in str(caught.value)

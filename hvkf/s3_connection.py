"""How hvkf speaks with an S3 service: s3fs, told to repeat nothing by itself."""

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

import s3fs

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mp4": "video/mp4",
    ".jpg": "image/jpeg",
    ".png": "image/png",
}


@functools.lru_cache(maxsize=1)
def file_system(pid: int) -> Any:
    """Make s3fs's object, one for each process: it does not survive a fork."""
    return connect()


def connect(**keys: str) -> Any:
    # Listings are not cached: other workers write at the same time.
    made = s3fs.S3FileSystem(
        **keys,
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={
            "retries": {"max_attempts": 0},
            "read_timeout": 60,
            "connect_timeout": 5,
            # Content-MD5 does it (see `checked`); some services refuse newer headers.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
    )
    made.retries = 1
    return made


def content_type(path: str) -> str:
    """Say what an object is: browsers show pages and play videos of that name only."""
    return CONTENT_TYPES.get(Path(path).suffix, "application/octet-stream")


def checked(data: bytes) -> dict[str, Any]:
    """Give the body of a request with its checksum: the service refuses what arrives otherwise."""
    checksum = hashlib.md5(data, usedforsecurity=False).digest()
    return {"Body": data, "ContentMD5": base64.b64encode(checksum).decode()}

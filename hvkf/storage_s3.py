"""The workspace in an S3 bucket: every request is ridden out alone, every write known by name.

s3fs carries the requests; it is told not to repeat any, for it repeats some faults and not others,
starts large transfers over from the beginning, and cannot tell its own lost conditional write from
another writer's. Here the unit of repetition is one request: a part of an upload, a range of a
download, a page of a listing.
"""

import base64
import contextlib
import functools
import hashlib
import logging
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import IncompleteRead
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import s3fs
from aiohttp import ClientError as ConnectionFault
from botocore.exceptions import (
    BotoCoreError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync

from hvkf.errors import AlreadyExists, BadInput, TryAgain
from hvkf.storage import FORMAT_FILE, ObjectStat, into_place, safe_path
from hvkf.user_files import check_size

PATIENCE_S = 300.0
# A service that never said a word is more likely to be the wrong address than to be away.
FIRST_PATIENCE_S = 20.0
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 8.0
CHUNK_BYTES = 32 << 20
NUM_TRANSFERS = 8
MAX_PARTS = 10_000
# Which put an object is of: a conditional put whose answer was lost finds its own mark there.
MARK = "hvkf-put"
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mp4": "video/mp4",
    ".jpg": "image/jpeg",
    ".png": "image/png",
}
FAULTS = (BotoCoreError, OSError, ConnectionFault, ResponseParserError)
TRANSIENT_FAULTS = (
    *(HTTPClientError, BotoConnectionError, ResponseParserError, ConnectionFault),
    *(IncompleteRead, ConnectionError, TimeoutError),
)
TRANSIENT_CODES = {
    *("SlowDown", "InternalError", "RequestTimeout", "Throttling", "ThrottlingException"),
    # Bytes were lost or changed on the way to the service, and it noticed.
    *("XAmzContentSHA256Mismatch", "BadDigest", "IncompleteBody"),
    # Two conditional writes at the same moment: neither was decided.
    *("OperationAborted", "ConditionalRequestConflict"),
}
TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
WRONG_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity"}
EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "InvalidToken"}

ResultT = TypeVar("ResultT")

log = logging.getLogger(__name__)


class _Chunk(NamedTuple):
    """Some bytes of an object, and what the answer said of the whole."""

    data: bytes
    size: int
    etag: str


class _Answer(NamedTuple):
    """What a service said in refusing a request: S3's code ('' where it gave none) and status."""

    code: str
    status: int


class S3Store:
    """A workspace in an S3 bucket; needs a service with conditional writes (If-None-Match).

    `patience_s` is how long one request is repeated while the service fails or is away.
    """

    def __init__(self, url: str, patience_s: float = PATIENCE_S) -> None:
        self.url = url.rstrip("/")
        self.bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._patience_s = patience_s
        self._has_answered = False

    @property
    def _fs(self) -> Any:
        return file_system(os.getpid())

    def _key(self, path: str) -> str:
        return f"{self._prefix}{safe_path(path)}"

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        first = self._get(path, 0)
        check_size(first.size, max_bytes, f"{self.url}/{path}")
        rest = self._in_parallel(
            lambda start: self._get(path, start, first.etag).data,
            range(CHUNK_BYTES, first.size, CHUNK_BYTES),
        )
        return b"".join([first.data, *rest])

    def exists(self, path: str) -> bool:
        try:
            self._head(path)
        except FileNotFoundError:
            return False
        return True

    def stat(self, path: str) -> ObjectStat:
        info = self._head(path)
        modified_s = info["LastModified"].timestamp()
        return ObjectStat(info["ContentLength"], f"etag:{info['ETag']}", modified_s)

    def list(self, prefix: str) -> Iterator[str]:
        yield from self._listed(Prefix=f"{self._key(prefix)}/")

    def list_root(self) -> Iterator[str]:
        found = self._listed(Prefix=self._prefix, Delimiter="/")
        yield from (name for name in found if name != FORMAT_FILE)

    def _listed(self, **where: str) -> Sequence[str]:
        found: list[str] = []
        page: dict[str, str] = {}
        while True:
            answer = self._call("list_objects_v2", **where, **page)
            found += [entry["Key"] for entry in answer.get("Contents", [])]
            if not answer.get("IsTruncated"):
                break
            page = {"ContinuationToken": answer["NextContinuationToken"]}
        # A key with a slash at its end is a folder that some tool drew.
        names = [key.removeprefix(self._prefix) for key in found if not key.endswith("/")]
        return sorted(names)

    def list_partial(self) -> Iterator[str]:
        yield from ()  # S3 shows no object before it is whole

    def put(self, path: str, data: bytes) -> None:
        self._put(path, data)

    def put_new(self, path: str, data: bytes) -> None:
        mark = uuid.uuid4().hex
        try:
            self._put(path, data, IfNoneMatch="*", Metadata={MARK: mark})
        except OSError as fault:
            if not _is_refused_condition(fault):
                raise
            # An answer that was lost on its way: the object that stands there is this very put.
            if self._head(path)["Metadata"].get(MARK) != mark:
                raise AlreadyExists(f"{self.url}/{path} was written before.") from None

    def put_if(self, path: str, data: bytes, expected: bytes | None) -> None:
        if expected is None:
            self.put_new(path, data)
            return
        try:
            # The tag is asked for before the bytes: it is stale if they changed in between.
            tag = self.stat(path).tag
            found: bytes | None = self.read(path)
        except FileNotFoundError:
            tag, found = "", None
        if found != expected:
            raise AlreadyExists(f"{self.url}/{path} was changed by another writer.")
        self.replace(path, data, tag)

    def replace(self, path: str, data: bytes, tag: str) -> None:
        """Write an object that is still as `stat` saw it; AlreadyExists when it has changed."""
        mark = uuid.uuid4().hex
        etag = tag.removeprefix("etag:")
        try:
            self._put(path, data, IfMatch=etag, Metadata={MARK: mark})
        except OSError as fault:
            if not _is_refused_condition(fault):
                raise
            if self._head(path)["Metadata"].get(MARK) != mark:
                raise AlreadyExists(f"{self.url}/{path} was changed meanwhile.") from None

    def upload(self, file: Path, path: str) -> None:
        size = file.stat().st_size
        if size <= CHUNK_BYTES:
            self._put(path, file.read_bytes())
        else:
            self._upload_parts(file, path, size)
        stored_bytes = self._head(path)["ContentLength"]
        if stored_bytes != size:
            raise TryAgain(f"{self.url}/{path} was stored with {stored_bytes} of {size} bytes.")

    def take(self, file: Path, path: str) -> None:
        self.upload(file, path)

    def download(self, path: str, file: Path) -> None:
        into_place(file, lambda part: self._download(path, part))

    def delete(self, path: str) -> None:
        self._call("delete_object", Key=self._key(path))

    def local_path(self, path: str) -> Path | None:
        return None

    def refuses_wrong_keys(self) -> bool:
        """Ask for the bucket's objects with keys that no service has given out."""
        stranger = _connect(key="hvkf-doctor", secret="wrong-on-purpose")
        try:
            self._ride_out(
                lambda: stranger.call_s3("list_objects_v2", Bucket=self.bucket, MaxKeys=1)
            )
        except BadInput:
            return True
        return False

    def _head(self, path: str) -> dict[str, Any]:
        answer: dict[str, Any] = self._call("head_object", Key=self._key(path))
        return answer

    def _put(self, path: str, data: bytes, **conditions: Any) -> None:
        self._call(
            "put_object",
            Key=self._key(path),
            ContentType=_content_type(path),
            **_body(data),
            **conditions,
        )

    def _upload_parts(self, file: Path, path: str, size: int) -> None:
        """Upload a large file in parts, each with its own checksum and repetitions."""
        key, mark = self._key(path), uuid.uuid4().hex
        kind = _content_type(path)
        begun = self._call(
            "create_multipart_upload", Key=key, ContentType=kind, Metadata={MARK: mark}
        )
        upload = {"Key": key, "UploadId": begun["UploadId"]}
        part_bytes = max(CHUNK_BYTES, -(-size // MAX_PARTS))

        def send(number: int) -> dict[str, Any]:
            with file.open("rb") as source:
                source.seek((number - 1) * part_bytes)
                data = source.read(part_bytes)
            answer = self._call("upload_part", PartNumber=number, **upload, **_body(data))
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            parts = self._in_parallel(send, range(1, -(-size // part_bytes) + 1))
            self._complete(path, upload, parts, mark)
        except BaseException:
            # Best effort, asked once: buckets drop unfinished uploads by a lifecycle rule as well.
            with contextlib.suppress(*FAULTS):
                self._fs.call_s3("abort_multipart_upload", Bucket=self.bucket, **upload)
            raise

    def _complete(
        self, path: str, upload: dict[str, str], parts: Sequence[dict[str, Any]], mark: str
    ) -> None:
        try:
            self._call("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
        except FileNotFoundError:
            # The upload is gone: completed by a request whose answer was lost, or by no one.
            if self._head(path)["Metadata"].get(MARK) != mark:
                raise

    def _download(self, path: str, file: Path) -> None:
        first = self._get(path, 0)
        with file.open("wb") as sink:
            sink.write(first.data)
            sink.truncate(first.size)

        def fetch(start: int) -> None:
            data = self._get(path, start, first.etag).data
            with file.open("r+b") as sink:
                sink.seek(start)
                sink.write(data)

        self._in_parallel(fetch, range(CHUNK_BYTES, first.size, CHUNK_BYTES))

    def _in_parallel(self, work: Callable[[int], ResultT], items: range) -> Sequence[ResultT]:
        with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
            return list(pool.map(work, items))

    def _get(self, path: str, start: int, etag: str | None = None) -> _Chunk:
        """Read up to CHUNK_BYTES of an object, that of the given ETag if one is given."""
        end = start + CHUNK_BYTES - 1
        condition = {} if etag is None else {"IfMatch": etag}

        async def fetch(client: Any) -> _Chunk:
            answer = await client._call_s3(
                "get_object",
                Bucket=self.bucket,
                Key=self._key(path),
                Range=f"bytes={start}-{end}",
                **condition,
            )
            async with answer["Body"] as body:
                data = await body.read()
            if len(data) != answer["ContentLength"]:
                raise TimeoutError(f"{len(data)} of {answer['ContentLength']} bytes came")
            whole = answer.get("ContentRange", f"/{len(data)}").rpartition("/")[2]
            return _Chunk(data, int(whole), answer["ETag"])

        try:
            chunk: _Chunk = self._ride_out(lambda: sync(self._fs.loop, fetch, self._fs))
        except OSError as fault:
            if _answer_of(fault).code != "InvalidRange":
                raise
            chunk = _Chunk(b"", 0, "")  # an empty object has no range
        return chunk

    def _call(self, method: str, **arguments: Any) -> Any:
        return self._ride_out(lambda: self._fs.call_s3(method, Bucket=self.bucket, **arguments))

    def _ride_out(self, send: Callable[[], ResultT]) -> ResultT:
        """Send a request until it is answered, or refused for good, or patience ends.

        Raises:
            BadInput: the service refused it; the sentence says what to mend.
            TryAgain: the service failed or was away all the time.
            FileNotFoundError: there is no such object.
            OSError: any other refusal, such as that of a condition.
        """
        begin_s, attempt = time.monotonic(), 0
        while True:
            try:
                result = send()
            except FAULTS as fault:
                self._has_answered |= _answer_of(fault).status != 0
                if not _is_transient(fault):
                    if sentence := _explanation(fault, self.url, self.bucket):
                        raise BadInput(sentence) from fault
                    raise
                patience_s = self._patience_s if self._has_answered else FIRST_PATIENCE_S
                wait_s = random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt))
                if time.monotonic() - begin_s + wait_s > min(patience_s, self._patience_s):
                    raise TryAgain(_away(fault, self.url)) from fault
                log.debug("%s: %r; trying again in %.2f s", self.url, fault, wait_s)
                time.sleep(wait_s)
                attempt += 1
            else:
                self._has_answered = True
                return result


@functools.lru_cache(maxsize=1)
def file_system(pid: int) -> Any:
    """Make s3fs's object, one for each process: it does not survive a fork."""
    return _connect()


def _connect(**keys: str) -> Any:
    # Listings are not cached: other workers write at the same time.
    made = s3fs.S3FileSystem(
        **keys,
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={"retries": {"max_attempts": 0}, "read_timeout": 60, "connect_timeout": 5},
    )
    made.retries = 1
    return made


def _content_type(path: str) -> str:
    """Say what an object is: browsers show pages and play videos of that name only."""
    return CONTENT_TYPES.get(Path(path).suffix, "application/octet-stream")


def _body(data: bytes) -> dict[str, Any]:
    """Give the body of a request with its checksum: the service refuses what arrives otherwise."""
    checksum = hashlib.md5(data, usedforsecurity=False).digest()
    return {"Body": data, "ContentMD5": base64.b64encode(checksum).decode()}


def _answer_of(fault: BaseException) -> _Answer:
    response = getattr(fault.__cause__, "response", None) or getattr(fault, "response", None) or {}
    error = response.get("Error", {}) if isinstance(response, dict) else {}
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    return _Answer(str(error.get("Code", "")), int(metadata.get("HTTPStatusCode", 0)))


def _is_refused_condition(fault: OSError) -> bool:
    return isinstance(fault, FileExistsError) or _answer_of(fault).status == 412


def _is_transient(fault: BaseException) -> bool:
    code, status = _answer_of(fault)
    if status:
        return code in TRANSIENT_CODES or status in TRANSIENT_STATUS
    return isinstance(fault, TRANSIENT_FAULTS)


def _away(fault: BaseException, url: str) -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    where = endpoint or "AWS itself, for AWS_ENDPOINT_URL is not set"
    return (
        f"{url} cannot be reached ({str(fault) or type(fault).__name__}): check that the S3 "
        f"service runs and that its address is right ({where}); the same command goes on from here."
    )


def _explanation(fault: BaseException, url: str, bucket: str) -> str | None:
    """Say in words, with the fix, what was refused; None for what callers handle."""
    code, status = _answer_of(fault)
    if code == "NoSuchBucket":
        return (
            f"There is no bucket {bucket!r} for {url}: create it, or mend `workspace` (and "
            "AWS_ENDPOINT_URL, which names the service)."
        )
    if isinstance(fault, NoCredentialsError | PartialCredentialsError):
        return (
            f"There are no AWS credentials for {url}: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the pod a Secret or a workload identity."
        )
    if code == "RequestTimeTooSkewed":
        return (
            f"The clock of this machine differs from that of the S3 service of {url} by more than "
            "it allows (15 minutes): set the clock (NTP), then run the same command."
        )
    if code in WRONG_KEYS:
        return (
            f"The S3 service of {url} does not know these AWS keys ({code}): check "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (in a cluster: the Secret of "
            "jobs.cluster.s3_secret)."
        )
    if code in EXPIRED:
        return f"The AWS credentials for {url} have expired ({code}): renew them."
    if status == 403:
        return (
            f"Access to {url} was refused ({fault}): check the AWS keys of this process and that "
            f"they may read, write, list and delete in the bucket {bucket!r}."
        )
    return None

"""The workspace in an S3 bucket: every request is ridden out alone, every write known by name.

s3fs carries the requests; it is told not to repeat any, for it repeats some faults and not others,
starts large transfers over from the beginning, and cannot tell its own lost conditional write from
another writer's. Here the unit of repetition is one request: a part of an upload, a range of a
download, a page of a listing.
"""

import contextlib
import logging
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fsspec.asyn import sync

from hvkf.errors import AlreadyExists, BadInput, TryAgain
from hvkf.redaction import without_userinfo
from hvkf.s3_connection import checked, connect, content_type, file_system
from hvkf.s3_errors import (
    FAULTS,
    NOT_IMPLEMENTED,
    UNEXPLAINED_STATUS,
    answer_of,
    away_sentence,
    is_refused_condition,
    is_transient,
    no_conditions,
    refusal,
)
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
# Conditions that an object which is there, with any bytes, does not meet.
UNMET_CONDITIONS = {"IfNoneMatch": "*", "IfMatch": '"00000000000000000000000000000000"'}
# Which put an object is of: a conditional put whose answer was lost finds its own mark there.
MARK = "hvkf-put"

ResultT = TypeVar("ResultT")

log = logging.getLogger(__name__)


class _Chunk(NamedTuple):
    """Some bytes of an object, and what the answer said of the whole."""

    data: bytes
    size: int
    etag: str


class _EmptyObject(Exception):
    """An object without bytes has no range of them."""


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
        self._kept_conditions: set[str] = set()

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

    def read_range(self, path: str, start: int, size: int) -> bytes:
        return self._get(path, start, size=size).data

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
        self._put_conditionally(path, data, "was written before", IfNoneMatch="*")

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
        etag = tag.removeprefix("etag:")
        self._put_conditionally(path, data, "was changed meanwhile", IfMatch=etag)

    def _put_conditionally(self, path: str, data: bytes, otherwise: str, **condition: str) -> None:
        """Put an object on a condition; AlreadyExists when it is not met."""
        metadata = {MARK: uuid.uuid4().hex}
        try:
            self._put(path, data, Metadata=metadata, **condition)
        except BadInput as error:
            if answer_of(error.__cause__).status != NOT_IMPLEMENTED:
                raise
            raise BadInput(no_conditions(self.url, *condition)) from error
        except OSError as fault:
            if not is_refused_condition(fault):
                raise
            self._kept_conditions.update(condition)
            # An answer that was lost on its way: the object that stands there is this very put.
            if self._head(path)["Metadata"].get(MARK) != metadata[MARK]:
                raise AlreadyExists(f"{self.url}/{path} {otherwise}.") from None
        else:
            self._see_refused(path, data, metadata, *condition)

    def _see_refused(
        self, path: str, data: bytes, metadata: dict[str, str], condition: str
    ) -> None:
        """See that the service keeps a condition, before what was put on it is trusted.

        Once for each store and condition: one more request, as cheap as to look up whether
        somebody has remembered it, and right when a workspace moves to another service. What is
        sent is what stands there already, so that it does no harm where it is not refused.

        Raises:
            BadInput: the service ignores the condition.
        """
        if condition in self._kept_conditions:
            return
        try:
            self._put(path, data, Metadata=metadata, **{condition: UNMET_CONDITIONS[condition]})
        except FileNotFoundError:
            return  # another one deleted the object: seen next time
        except OSError as fault:
            if not is_refused_condition(fault):
                raise
            self._kept_conditions.add(condition)
        else:
            raise BadInput(no_conditions(self.url, condition))

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
        stranger = connect(key="hvkf-doctor", secret="wrong-on-purpose")
        try:
            self._ride_out(
                lambda: stranger.call_s3("list_objects_v2", Bucket=self.bucket, MaxKeys=1)
            )
        except BadInput:
            return True
        return False

    def _head(self, path: str) -> dict[str, Any]:
        """Ask for what is known of an object."""
        key = self._key(path)

        def ask() -> dict[str, Any]:
            try:
                answer: dict[str, Any] = self._fs.call_s3(
                    "head_object", Bucket=self.bucket, Key=key
                )
            except OSError as fault:
                status = answer_of(fault).status
                if status not in UNEXPLAINED_STATUS:
                    raise
                # The same question as GET, whose answer has a body: it says which reason, or that
                # the reason has passed.
                with contextlib.suppress(_EmptyObject):
                    self._read_range(path, 0, 0)
                raise TimeoutError(f"HEAD was answered {status}") from fault
            return answer

        return self._ride_out(ask)

    def _put(self, path: str, data: bytes, **conditions: Any) -> None:
        self._call(
            "put_object",
            Key=self._key(path),
            ContentType=content_type(path),
            **checked(data),
            **conditions,
        )

    def _upload_parts(self, file: Path, path: str, size: int) -> None:
        """Upload a large file in parts, each with its own checksum and repetitions."""
        key, mark = self._key(path), uuid.uuid4().hex
        kind = content_type(path)
        begun = self._call(
            "create_multipart_upload", Key=key, ContentType=kind, Metadata={MARK: mark}
        )
        upload = {"Key": key, "UploadId": begun["UploadId"]}
        part_bytes = max(CHUNK_BYTES, -(-size // MAX_PARTS))

        def send(number: int) -> dict[str, Any]:
            with file.open("rb") as source:
                source.seek((number - 1) * part_bytes)
                data = source.read(part_bytes)
            answer = self._call("upload_part", PartNumber=number, **upload, **checked(data))
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

    def _get(
        self, path: str, start: int, etag: str | None = None, size: int | None = None
    ) -> _Chunk:
        """Read up to `size` bytes of an object (CHUNK_BYTES), of the given ETag if there is one."""
        condition = {} if etag is None else {"IfMatch": etag}
        end = start + (size or CHUNK_BYTES) - 1
        try:
            return self._ride_out(lambda: self._read_range(path, start, end, **condition))
        except _EmptyObject:
            return _Chunk(b"", 0, "")

    def _read_range(self, path: str, start: int, end: int, **condition: str) -> _Chunk:
        """Ask once for bytes of an object, the last of them included."""

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
            chunk: _Chunk = sync(self._fs.loop, fetch, self._fs)
        except OSError as fault:
            if answer_of(fault).code == "InvalidRange":
                raise _EmptyObject from fault
            raise
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
                self._has_answered |= answer_of(fault).status != 0
                if not is_transient(fault):
                    if error := refusal(fault, self.url, self.bucket):
                        raise error from fault
                    raise
                patience_s = self._patience_s if self._has_answered else FIRST_PATIENCE_S
                wait_s = random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt))
                if time.monotonic() - begin_s + wait_s > min(patience_s, self._patience_s):
                    raise TryAgain(away_sentence(fault, self.url)) from fault
                said = without_userinfo(f"{self.url}: {fault!r}")
                log.debug("%s; trying again in %.2f s", said, wait_s)
                time.sleep(wait_s)
                attempt += 1
            else:
                self._has_answered = True
                return result

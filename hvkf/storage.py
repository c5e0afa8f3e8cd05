"""The one door to the workspace: a folder or an `s3://bucket/prefix`, with the same few promises.

Promises: a reader sees a whole object or none; `put_new` creates an object at most once, however
many try; `list` shows what was put before it was called. Paths are relative, with forward slashes.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from hvkf.errors import AlreadyExists, BadInput, CorruptData, DiskFull, TryAgain

TEMPORARY_PREFIX = ".partial-"
COPY_CHUNK_BYTES = 1 << 20
FORMAT_FILE = "hvkf-workspace"
WORKSPACE_FORMAT = 1


class ObjectStat(NamedTuple):
    """What is known of an object without reading it; `tag` changes when its bytes do.

    `modified_s` is in seconds since 1970.
    """

    size: int
    tag: str
    modified_s: float


class Store(Protocol):
    """What stages may do with the workspace."""

    url: str

    def read(self, path: str) -> bytes:
        """Return an object's bytes; FileNotFoundError when there is none."""

    def exists(self, path: str) -> bool:
        """Say whether there is an object at `path`."""

    def stat(self, path: str) -> ObjectStat:
        """Return size and tag; FileNotFoundError when there is no object."""

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the paths of all objects below the folder `prefix`, sorted."""

    def list_partial(self) -> Iterator[str]:
        """Yield what killed writers left behind: never read, and not in `list`."""

    def put(self, path: str, data: bytes) -> None:
        """Write an object, replacing what was there, whole or not at all."""

    def put_new(self, path: str, data: bytes) -> None:
        """Create an object; AlreadyExists when there is one."""

    def upload(self, file: Path, path: str) -> None:
        """Write an object from a local file, whole or not at all."""

    def download(self, path: str, file: Path) -> None:
        """Copy an object to a local file, whole or not at all."""

    def delete(self, path: str) -> None:
        """Remove an object; no fault when there is none."""

    def local_path(self, path: str) -> Path | None:
        """Return where the object lies on this machine, when it does."""


def safe_path(path: str) -> str:
    """Check that a path stays inside the workspace, and return it."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise BadInput(f"The path {path!r} leaves the workspace; write it relative, without '..'.")
    return str(pure)


@contextlib.contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turn the system's 'no space left' into a sentence that names the folder and the fix."""
    try:
        yield
    except OSError as fault:
        if fault.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            f"No space left on the device of {folder}: free some (`hvkf gc` shows what nothing "
            "refers to), or set `workspace` (or TMPDIR, for scratch files) to a larger one."
        ) from fault


class FolderStore:
    """A workspace in a folder; objects appear by an atomic rename or link."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.url = str(self.root)

    def _file(self, path: str) -> Path:
        return self.root / safe_path(path)

    @contextlib.contextmanager
    def _temporary(self, target: Path) -> Iterator[Path]:
        """Give a file beside the target, on the same device, that is gone afterwards."""
        temporary = target.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        with explain_full_disk(self.root):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)

    def read(self, path: str) -> bytes:
        return self._file(path).read_bytes()

    def exists(self, path: str) -> bool:
        return self._file(path).is_file()

    def stat(self, path: str) -> ObjectStat:
        info = self._file(path).stat()
        return ObjectStat(info.st_size, f"mtime:{info.st_mtime_ns}", info.st_mtime)

    def list(self, prefix: str) -> Iterator[str]:
        found = []
        for folder, _, names in os.walk(self._file(prefix)):
            relative = Path(folder).relative_to(self.root)
            found += [
                (relative / name).as_posix()
                for name in names
                if not name.startswith(TEMPORARY_PREFIX)
            ]
        yield from sorted(found)

    def list_partial(self) -> Iterator[str]:
        for file in sorted(self.root.rglob(f"{TEMPORARY_PREFIX}*")):
            yield file.relative_to(self.root).as_posix()

    def put(self, path: str, data: bytes) -> None:
        target = self._file(path)
        with self._temporary(target) as temporary:
            _write_durably(temporary, data)
            temporary.replace(target)

    def put_new(self, path: str, data: bytes) -> None:
        target = self._file(path)
        with self._temporary(target) as temporary:
            _write_durably(temporary, data)
            try:
                os.link(temporary, target)
            except FileExistsError:
                raise AlreadyExists(f"{self.url}/{path} was written before.") from None

    def upload(self, file: Path, path: str) -> None:
        target = self._file(path)
        with self._temporary(target) as temporary:
            with file.open("rb") as source, temporary.open("wb") as sink:
                shutil.copyfileobj(source, sink, COPY_CHUNK_BYTES)
                sink.flush()
                os.fsync(sink.fileno())
            temporary.replace(target)

    def download(self, path: str, file: Path) -> None:
        _into_place(file, lambda temporary: shutil.copyfile(self._file(path), temporary))

    def delete(self, path: str) -> None:
        self._file(path).unlink(missing_ok=True)

    def local_path(self, path: str) -> Path | None:
        return self._file(path)


class S3Store:
    """A workspace in an S3 bucket; needs a service with conditional writes (If-None-Match)."""

    def __init__(self, url: str) -> None:
        import s3fs  # here, because importing it takes half a second

        self.url = url.rstrip("/")
        self.root = self.url.removeprefix("s3://")
        # Listings are not cached: other workers write at the same time.
        self._fs: Any = s3fs.S3FileSystem(use_listings_cache=False)

    def _key(self, path: str) -> str:
        return f"{self.root}/{safe_path(path)}"

    def read(self, path: str) -> bytes:
        with _explain_s3(self.url):
            data: bytes = self._fs.cat_file(self._key(path))
        return data

    def exists(self, path: str) -> bool:
        with _explain_s3(self.url):
            return bool(self._fs.isfile(self._key(path)))

    def stat(self, path: str) -> ObjectStat:
        with _explain_s3(self.url):
            info = self._fs.info(self._key(path))
        modified_s = info["LastModified"].timestamp()
        return ObjectStat(info["size"], f"etag:{info['ETag']}", modified_s)

    def list(self, prefix: str) -> Iterator[str]:
        with _explain_s3(self.url):
            keys = self._fs.find(self._key(prefix))
        yield from sorted(key.removeprefix(self.root + "/") for key in keys)

    def list_partial(self) -> Iterator[str]:
        yield from ()  # S3 shows no object before it is whole

    def put(self, path: str, data: bytes) -> None:
        with _explain_s3(self.url):
            self._fs.pipe_file(self._key(path), data)

    def put_new(self, path: str, data: bytes) -> None:
        bucket, _, key = self._key(path).partition("/")
        with _explain_s3(self.url):
            try:
                self._fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            except (FileExistsError, OSError) as fault:
                if not _is_precondition_failure(fault):
                    raise
                raise AlreadyExists(f"{self.url}/{path} was written before.") from None

    def upload(self, file: Path, path: str) -> None:
        with _explain_s3(self.url):
            self._fs.put_file(str(file), self._key(path))
            stored_bytes = self._fs.info(self._key(path))["size"]
        if stored_bytes != file.stat().st_size:
            raise TryAgain(
                f"{self.url}/{path} was stored with {stored_bytes} of {file.stat().st_size} bytes."
            )

    def download(self, path: str, file: Path) -> None:
        with _explain_s3(self.url):
            _into_place(file, lambda part: self._fs.get_file(self._key(path), str(part)))

    def delete(self, path: str) -> None:
        with _explain_s3(self.url), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._key(path))

    def local_path(self, path: str) -> Path | None:
        return None


def _is_precondition_failure(fault: OSError) -> bool:
    response = getattr(fault.__cause__, "response", None) or {}
    code = response.get("Error", {}).get("Code")
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return isinstance(fault, FileExistsError) or code == "PreconditionFailed" or status == 412


@contextlib.contextmanager
def _explain_s3(url: str) -> Iterator[None]:
    """Say in words what the service refused; a missing object stays FileNotFoundError."""
    try:
        yield
    except PermissionError as fault:
        raise BadInput(
            f"Access to {url} was refused ({fault}): check the AWS credentials of this process "
            "and that they may read, write and list there."
        ) from fault
    except FileNotFoundError:
        raise
    except (ConnectionError, TimeoutError) as fault:
        raise TryAgain(f"{url} cannot be reached: {fault}.") from fault


def _write_durably(file: Path, data: bytes) -> None:
    with file.open("wb") as sink:
        sink.write(data)
        sink.flush()
        os.fsync(sink.fileno())


def _into_place(file: Path, fill: Any) -> None:
    temporary = file.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    with explain_full_disk(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            fill(temporary)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)


def file_sha256(file: Path) -> str:
    """Hash a local file without holding it in memory."""
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def object_sha256(store: Store, path: str) -> str:
    """Hash a stored object, from where it lies."""
    local = store.local_path(path)
    if local is not None:
        return file_sha256(local)
    return hashlib.sha256(store.read(path)).hexdigest()


def open_folder(url: str) -> Store:
    """Open any folder or `s3://` prefix, such as the one the source videos lie in."""
    if url.startswith("s3://"):
        return S3Store(url)
    if "://" in url:
        raise BadInput(
            f"{url!r} is neither a folder nor s3://bucket/prefix; other schemes are not supported."
        )
    return FolderStore(Path(url))


def open_store(url: str) -> Store:
    """Open a workspace, and refuse one that another format of hvkf wrote."""
    store = open_folder(url)
    _check_format(store)
    return store


def _check_format(store: Store) -> None:
    try:
        found = store.read(FORMAT_FILE).decode().strip()
    except FileNotFoundError:
        with contextlib.suppress(AlreadyExists):
            store.put_new(FORMAT_FILE, f"{WORKSPACE_FORMAT}\n".encode())
        return
    if found != str(WORKSPACE_FORMAT):
        raise CorruptData(
            f"The workspace {store.url} has format {found!r} and this hvkf reads "
            f"{WORKSPACE_FORMAT}: use the version of hvkf that wrote it, or another workspace."
        )

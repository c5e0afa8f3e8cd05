"""The one door to the workspace: a folder or an `s3://bucket/prefix`, with the same few promises.

Promises: a reader sees a whole object or none; `put_new` creates an object at most once, however
many try; `list` shows what was put before it was called. Paths are relative, with forward slashes.
"""

import contextlib
import errno
import functools
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from hvkf import atomic_files
from hvkf.errors import AlreadyExists, BadInput, CorruptData
from hvkf.os_errors import NO_ROOM, check_is_folder, explain_os_error
from hvkf.settings.section import in_home, not_blank
from hvkf.shown import shown, shown_name
from hvkf.stored_kinds import ROOTS
from hvkf.user_files import open_regular, read_regular, shortened

TEMPORARY_PREFIX = ".partial-"
LOCK_NAME = ".lock"
COPY_CHUNK_BYTES = 1 << 20
FORMAT_FILE = "hvkf-workspace"
WORKSPACE_FORMAT = 1
# As services and not only AWS take them: some have capitals, underscores or less than 3 letters.
BUCKET_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


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

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        """Return an object's bytes; FileNotFoundError when there is none.

        OSError with EFBIG when there are more than `max_bytes`.
        """

    def read_range(self, path: str, start: int, size: int) -> bytes:
        """Return `size` bytes of an object from `start` on; fewer where it ends before."""

    def exists(self, path: str) -> bool:
        """Say whether there is an object at `path`."""

    def stat(self, path: str) -> ObjectStat:
        """Return size and tag; FileNotFoundError when there is no object."""

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the paths of all objects below the folder `prefix`, sorted."""

    def list_root(self) -> Iterator[str]:
        """Yield the objects that lie in no folder, but for the workspace's own: none of ours."""

    def list_partial(self) -> Iterator[str]:
        """Yield what killed writers left behind: never read, and not in `list`."""

    def put(self, path: str, data: bytes) -> None:
        """Write an object, replacing what was there, whole or not at all."""

    def put_new(self, path: str, data: bytes) -> None:
        """Create an object; AlreadyExists when there is one."""

    def put_if(self, path: str, data: bytes, expected: bytes | None) -> None:
        """Replace an object that still holds `expected` (None: create it); else AlreadyExists."""

    def upload(self, file: Path, path: str) -> None:
        """Write an object from a local file, whole or not at all."""

    def take(self, file: Path, path: str) -> None:
        """As `upload`, of a scratch file: it may be gone afterwards, for it is moved if it can."""

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
        raise BadInput(
            f"The path {shortened(path)!r} leaves the workspace; write it relative, without '..'."
        )
    return str(pure)


@contextlib.contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turn the system's 'no space left' into a sentence that names the folder and the fix."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM or (told := explain_os_error(error, folder)) is None:
            raise
        raise told from error


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn what the system refuses a writer (room, the right to write) into sentences."""
    try:
        yield
    except OSError as error:
        told = explain_os_error(error, folder)
        if not isinstance(told, BadInput):
            raise
        raise told from error


class LeadsOutside(BadInput):
    """A symbolic link leads out of the folder that a path is meant to lie in."""


# Many files lie in few folders, and following links looks at every folder above.
_real_folder = functools.lru_cache(1024)(os.path.realpath)


class FolderStore:
    """A workspace in a folder; objects appear by an atomic rename or link.

    A `confined` one holds files of users: those that a link leads out of the folder to are refused
    with `LeadsOutside`, whichever way they are asked for.
    """

    def __init__(self, root: Path, *, confined: bool = False) -> None:
        self.root = root.absolute()
        self.url = str(self.root)
        self._confined = confined

    def _file(self, path: str) -> Path:
        file = self.root / safe_path(path)
        if self._confined and not self._is_inside(file):
            raise LeadsOutside(f"{shortened(path)} is a link that leads out of {self.url}")
        return file

    def _is_inside(self, file: Path) -> bool:
        target = os.path.join(_real_folder(str(file.parent)), file.name)
        if os.path.islink(target):
            target = os.path.realpath(target)
        return target.startswith(_real_folder(self.url).rstrip("/") + "/")

    @contextlib.contextmanager
    def _temporary(self, target: Path) -> Iterator[Path]:
        """Give a file beside the target, on the same device, that is gone afterwards."""
        temporary = target.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        with _explained(self.root):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        return read_regular(self._file(path), max_bytes)

    def read_range(self, path: str, start: int, size: int) -> bytes:
        with self._file(path).open("rb") as file:
            file.seek(start)
            return file.read(size)

    def exists(self, path: str) -> bool:
        return self._file(path).is_file()

    def stat(self, path: str) -> ObjectStat:
        info = self._file(path).stat()
        return ObjectStat(info.st_size, f"mtime:{info.st_mtime_ns}", info.st_mtime)

    def list(self, prefix: str) -> Iterator[str]:
        found = []
        for folder, _, names in os.walk(self._file(prefix), onerror=_raise_unread):
            relative = Path(folder).relative_to(self.root)
            found += [
                (relative / name).as_posix()
                for name in names
                if not name.startswith(TEMPORARY_PREFIX) and name != LOCK_NAME
            ]
        yield from sorted(found)

    def list_root(self) -> Iterator[str]:
        if self.root.is_dir():
            found = (file.name for file in self.root.iterdir() if not file.is_dir())
            own = (FORMAT_FILE, LOCK_NAME)
            yield from sorted(
                name for name in found if name not in own and not name.startswith(TEMPORARY_PREFIX)
            )

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
                atomic_files.link_new(temporary, target)
            except FileExistsError:
                raise AlreadyExists(f"{self.url}/{path} was written before.") from None

    def put_if(self, path: str, data: bytes, expected: bytes | None) -> None:
        if expected is None:
            self.put_new(path, data)
            return
        # The kernel lets go of the lock when its holder is killed. The bytes are compared, for
        # two writes may bear the same time.
        target = self._file(path)
        with _explained(self.root), (target.parent / LOCK_NAME).open("w") as lock:
            atomic_files.lock(lock)
            if not target.is_file() or target.read_bytes() != expected:
                raise AlreadyExists(f"{self.url}/{path} was changed by another writer.")
            self.put(path, data)

    def upload(self, file: Path, path: str) -> None:
        target = self._file(path)
        with self._temporary(target) as temporary:
            with open_regular(file) as source, temporary.open("wb") as sink:
                shutil.copyfileobj(source, sink, COPY_CHUNK_BYTES)
                sink.flush()
                os.fsync(sink.fileno())
            temporary.replace(target)

    def take(self, file: Path, path: str) -> None:
        target = self._file(path)
        with _explained(self.root):
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as written:
                os.fsync(written.fileno())
            try:
                file.replace(target)
            except OSError as fault:
                if fault.errno != errno.EXDEV:  # scratch lies on another device
                    raise
                self.upload(file, path)

    def download(self, path: str, file: Path) -> None:
        into_place(file, lambda temporary: shutil.copyfile(self._file(path), temporary))

    def delete(self, path: str) -> None:
        with _explained(self.root):
            self._file(path).unlink(missing_ok=True)

    def local_path(self, path: str) -> Path | None:
        return self._file(path)


def _raise_unread(error: OSError) -> None:
    """Let a listing fail where a folder may not be read: what is not seen would count as absent."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return
    raise explain_os_error(error) or error


def _write_durably(file: Path, data: bytes) -> None:
    with file.open("wb") as sink:
        sink.write(data)
        sink.flush()
        os.fsync(sink.fileno())


def into_place(file: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a local file under another name, and give it its own when it is whole."""
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
    with open_regular(file) as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def object_sha256(store: Store, path: str) -> str:
    """Hash a stored object, from where it lies."""
    local = store.local_path(path)
    if local is not None:
        return file_sha256(local)
    return hashlib.sha256(store.read(path)).hexdigest()


def bad_bucket(url: str) -> str:
    """Write the sentence about an `s3://` address whose bucket no service can have."""
    _, at, bucket = _bucket(url).rpartition("@")
    if at:
        return (
            f"{shown_name(f's3://{bucket}')!r} was given with keys before an @: set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead; write s3://bucket/prefix."
        )
    return (
        f"{shown_name(url)!r} names no bucket: {shown(bucket)} is not 1 to 63 letters, "
        "digits, dots and dashes; write s3://bucket/prefix."
    )


def _bucket(url: str) -> str:
    return url.removeprefix("s3://").partition("/")[0]


def open_folder(url: str, *, confined: bool = False) -> Store:
    """Open any folder or `s3://` prefix, such as the one the source videos lie in.

    Args:
        url: Where it is.
        confined: Refuse files that a link leads out of the folder to.

    Raises:
        BadInput: a file is there or above, the bucket's name is none, or the scheme is another.
    """
    if url.startswith("s3://"):
        if not BUCKET_NAME.fullmatch(_bucket(url)):
            raise BadInput(bad_bucket(url))
        from hvkf.storage_s3 import S3Store  # here, because importing s3fs takes half a second

        return S3Store(url)
    if "://" in url:
        raise BadInput(
            f"{shown_name(url)!r} is neither a folder nor s3://bucket/prefix; other schemes are "
            "not supported."
        )
    try:
        folder = Path(in_home(not_blank(url)))
    except ValueError as error:
        raise BadInput(f"{shown_name(url)!r} is no folder: {error}.") from None
    check_is_folder(folder.absolute(), "workspace or folder")
    return FolderStore(folder, confined=confined)


def open_store(url: str) -> Store:
    """Open a workspace, made if it is not there, and refuse one of another format of hvkf."""
    store = open_folder(url)
    try:
        _check_format(store)
    except FileNotFoundError:
        with contextlib.suppress(AlreadyExists):
            store.put_new(FORMAT_FILE, f"{WORKSPACE_FORMAT}\n".encode())
    return store


def open_existing(url: str) -> Store:
    """Open a workspace for a command that only reads: nothing is made.

    Raises:
        BadInput: there is none.
        CorruptData: it has another format.
    """
    store = open_folder(url)
    try:
        _check_format(store)
    except FileNotFoundError:
        # One whose format was lost is still there to be looked at.
        if all(next(store.list(root), None) is None for root in ROOTS):
            raise BadInput(
                f"There is no workspace at {store.url}: name the folder or s3://bucket/prefix that "
                "the stages wrote to."
            ) from None
    return store


def _check_format(store: Store) -> None:
    found = store.read(FORMAT_FILE).decode(errors="replace").strip()
    if found != str(WORKSPACE_FORMAT):
        raise CorruptData(
            f"The workspace {store.url} has format {found[:20]!r} and this hvkf reads "
            f"{WORKSPACE_FORMAT}: use the version of hvkf that wrote it, or another workspace."
        )

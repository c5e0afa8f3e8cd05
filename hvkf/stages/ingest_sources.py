"""Where the source videos lie, and how a table's path becomes a file."""

import contextlib
import os
import posixpath
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hvkf.config import Config
from hvkf.errors import BadInput, ConfigError
from hvkf.settings.data import IngestConfig
from hvkf.storage import LeadsOutside, Store, open_folder, safe_path
from hvkf.unicode_names import name_there
from hvkf.user_files import open_regular, reason_of

MAX_NAME_BYTES = 255
UNREADABLE = "unreadable-file"


class SourceError(BadInput):
    """A source video cannot be opened; `code` is what its failure is recorded under.

    Codes: `missing`, `outside` (it leaves the base folder), `unreadable-file` (whatever else the
    system answers, such as a name too long, an error of the disk or too many open files).
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def split_location(metadata: str) -> tuple[str, str]:
    """Split the table's path or address into its folder and its name."""
    folder, _, name = metadata.rpartition("/")
    return folder or ("/" if metadata.startswith("/") else "."), name


def source_folder(config: IngestConfig) -> str:
    """The folder or `s3://` prefix that video paths are relative to."""
    return config.base_dir or split_location(config.metadata)[0]


def check_pods_see_sources(config: Config, stage: str) -> None:
    """Refuse source videos that the pods of a stage cannot see.

    Raises:
        ConfigError: they lie in a folder of this machine, and nothing mounts it.
    """
    jobs = getattr(config.jobs, stage)
    folder = source_folder(config.ingest)
    if jobs.executor == "kubernetes" and "://" not in folder and not jobs.pod_patch:
        raise ConfigError(
            f"The videos lie in {folder!r}, a folder of this machine, which pods do not see: put "
            "them and their table into S3 (ingest.metadata: s3://bucket/dataset/metadata.csv), or "
            f"mount the folder by jobs.{stage}.pod_patch."
        )


def open_sources(config: IngestConfig) -> Store:
    """Open the folder of the source videos, which links may leave only if the settings say so."""
    return open_folder(source_folder(config), confined=not config.follow_links)


def source_stat(sources: Store, source: str) -> tuple[int, str]:
    """Give a source video's size in bytes and its tag, which changes when its bytes do.

    A video that cannot be opened has the size -1 and its failure's code as its tag.
    """
    try:
        with _explained():
            found = sources.stat(name_there(sources, _path(source)))
    except SourceError as error:
        return -1, error.code
    return found.size, found.tag


@contextlib.contextmanager
def local_file(sources: Store, source: str) -> Iterator[Path]:
    """Give a source video as a local file: where it lies, or a copy for the time being.

    Raises:
        SourceError: it is missing, leaves the base folder, or cannot be opened. It is a regular
            file: no named pipe, socket or device, on which a decoder would wait.
    """
    path = _path(source)
    with contextlib.ExitStack() as stack:
        with _explained():
            path = name_there(sources, path)
            file = sources.local_path(path)
            if file is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hvkf-source-"))
                file = Path(folder) / _short_name(path)
                sources.download(path, file)
            open_regular(file).close()
        yield file


def _short_name(path: str) -> str:
    """Give the file's name, or a shorter one where S3 has a name that no local file can have."""
    name = Path(path).name
    return name if len(os.fsencode(name)) <= MAX_NAME_BYTES else f"video{Path(path).suffix[:8]}"


def _path(source: str) -> str:
    """Give the path without detours, such as `a/../b`, which a store refuses."""
    try:
        return safe_path(posixpath.normpath(source))
    except BadInput:
        raise SourceError("outside", "its path leaves the base folder; correct it") from None


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise SourceError("missing", "there is no such file") from None
    except LeadsOutside as error:
        raise SourceError(
            "outside", f"{error}; copy the video there, or set ingest.follow_links"
        ) from None
    except (OSError, ValueError) as error:
        raise SourceError(UNREADABLE, f"it cannot be opened: {reason_of(error)}") from error

"""Opening a video file: only regular files, only containers that open no other file."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer

from hvkf.containers import what_is_cut_off
from hvkf.media.errors import UNREADABLE_FILE, MediaFault
from hvkf.user_files import open_regular, reason_of

# Playlists are left out on purpose: they make the decoder open other files.
DEMUXERS = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,h264,hevc,flv,asf,ogg,mxf,nut,ivf,gif,apng,dv,"
    "yuv4mpegpipe,mp3,wav,flac,aac"
)

NO_FILE = (errno.EISDIR, errno.EINVAL)
"""The system's answers about folders, pipes and devices, which will not pass by themselves."""


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """Open a video file.

    Raises:
        MediaFault: it is not there, is no regular file, is cut off or is no video.
    """
    _check(path)
    try:
        container = av.open(
            f"file:{path}",
            metadata_errors="ignore",
            container_options={"format_whitelist": DEMUXERS},
        )
    except av.FFmpegError as fault:
        raise MediaFault(
            "unreadable",
            f"{path.name} is not a video that can be opened ({fault.strerror}); replace it or "
            f"remove its row",
        ) from fault
    with container:
        yield container


def _check(path: Path) -> None:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            lacking = what_is_cut_off(file, size)
    except FileNotFoundError:
        raise MediaFault("missing", f"there is no file {path.name}") from None
    except OSError as error:
        code = "unreadable" if error.errno in NO_FILE else UNREADABLE_FILE
        raise MediaFault(code, f"{path.name} cannot be read: {reason_of(error)}") from error
    if size == 0:
        raise MediaFault("empty", f"{path.name} is an empty file; copy it again or remove its row")
    if lacking is not None:
        raise MediaFault("truncated", f"{path.name} is cut off: {lacking}; copy it again")

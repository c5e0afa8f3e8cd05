"""From a file to frames as they are to be shown: track chosen, decoded, deinterlaced."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from av.video.frame import VideoFrame

from hvkf.media.errors import only_this_file
from hvkf.media.fields import deinterlaced
from hvkf.media.frames import Converter, decoded
from hvkf.media.opening import opened
from hvkf.media.reading import Choices, Header, Said, Seen, choose
from hvkf.media.timing import Timing, timing
from hvkf.media.tracks import choose_track, track_number
from hvkf.media.turns import Turn, turn_of
from hvkf.records import Note, Reading


class Shown(NamedTuple):
    """A video's frames, what turns them into RGB, and how that is laid down."""

    frames: Iterator[VideoFrame]
    converter: Converter
    turn: Turn


@contextmanager
def frames_to_show(path: Path, reading: Reading | None) -> Iterator[Shown]:
    """Open a video to read it straight through.

    Args:
        path: The file.
        reading: As `look` chose it; None to choose by the headers and the first frame alone.

    Raises:
        MediaFault: here or while frames come.
    """
    with only_this_file(path.name), opened(path) as container:
        if reading is None:
            track = choose_track(container, path)
        else:
            track = track_number(container, reading.track, path)
        header = Header.of(track)
        decoder = header.alpha_decoder if reading is None else reading.decoder
        stored = decoded(container, track.stream, path.name, decoder)
        first = next(stored, None)
        if first is None:
            yield Shown(iter(()), Converter(Reading()), Turn())
            return
        if reading is None:
            reading = choose(Said.of(path.name, track, header, first), None, Choices()).reading
        frames: Iterator[VideoFrame] = itertools.chain([first], stored)
        if reading.fields:
            frames = deinterlaced(frames, reading.fields)
        yield Shown(frames, Converter(reading), turn_of(first))


class Looked(NamedTuple):
    """What decoding a whole video without converting it showed."""

    said: Said
    codec: str
    turn: Turn
    timing: Timing
    num_frames: int
    reading: Reading
    notes: tuple[Note, ...]


def look(path: Path, choices: Choices) -> Looked | None:
    """Decode a whole video and choose how to read it; None when it has no frame.

    Raises:
        MediaFault: it cannot be decoded from its first to its last frame, or is refused.
    """
    said: Said | None = None
    seen = Seen()
    turn = Turn()
    with only_this_file(path.name), opened(path) as container:
        track = choose_track(container, path)
        header = Header.of(track)
        codec = track.stream.codec_context.name
        for frame in decoded(container, track.stream, path.name, header.alpha_decoder):
            if said is None:
                said, turn = Said.of(path.name, track, header, frame), turn_of(frame)
            seen.add(frame, said)
        declared = track.stream.average_rate or track.stream.guessed_rate
        if said is None:
            return None
        found = timing(seen.times_s, seen.last_frame_s, declared)
        chosen = choose(said, seen, choices)
    notes = (*chosen.notes, *found.notes)
    return Looked(said, codec, turn, found, len(seen.times_s), chosen.reading, notes)

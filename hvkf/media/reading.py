"""What a video file says about its pictures, and what is chosen where it is not plain.

`Said` is what headers and the first frame say, `Seen` what decoding all frames showed. `choose`
makes of both a `Reading`, by which every frame is decoded and converted, and notes for people.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame

from hvkf.media import colours
from hvkf.media.alpha import ALPHA_DECODERS, has_alpha, is_transparent
from hvkf.media.errors import MediaFault
from hvkf.media.fields import FieldOrder, FieldsSeen, declared_order
from hvkf.media.tracks import Track
from hvkf.media.turns import turn_note
from hvkf.records import Note, Reading

MOST_OBLONG = 8
"""A pixel that is longer than this many times its width is an error of the header."""
MAX_SIDE = 2**15
DOLBY_VISION = {SideDataType.DOVI_METADATA, SideDataType.DOVI_RPU_BUFFER}


class Choices(NamedTuple):
    """What the settings say about videos that cannot be taken as they are."""

    interlaced: Literal["deinterlace", "refuse"] = "deinterlace"
    hdr: Literal["tonemap", "refuse"] = "tonemap"


@dataclass(frozen=True)
class Said:
    """What a track's headers and first frame say; names, not libav's numbers."""

    name: str
    track: Track
    width: int
    height: int
    aspect: Fraction
    colours: colours.Colours
    pixel_format: str
    has_alpha: bool
    alpha_decoder: str
    hides_alpha: bool
    is_dolby_vision: bool
    field_order: FieldOrder
    is_field_flagged: bool
    turn_note: Note | None

    @classmethod
    def of(cls, name: str, track: Track, header: "Header", frame: VideoFrame) -> "Said":
        """Read a track's header and its first frame."""
        side_data: Any = frame.side_data  # PyAV's types call it a dict of motion vectors
        kinds = {data.type for data in side_data}
        return cls(
            name=name,
            track=track,
            width=frame.width,
            height=frame.height,
            aspect=_aspect(track, header),
            colours=colours.Colours.of(frame, header.colours),
            pixel_format=frame.format.name,
            has_alpha=has_alpha(frame.format),
            alpha_decoder=header.alpha_decoder,
            hides_alpha=header.hides_alpha,
            is_dolby_vision=bool(kinds & DOLBY_VISION),
            field_order=header.field_order,
            is_field_flagged=frame.interlaced_frame,
            turn_note=turn_note(frame),
        )


class Header(NamedTuple):
    """What a track says before its first frame is decoded, which changes some of it."""

    aspect: Fraction | None
    colours: tuple[int, int, int, int]
    field_order: FieldOrder
    alpha_decoder: str
    hides_alpha: bool

    @classmethod
    def of(cls, track: Track) -> "Header":
        """Read it."""
        context = track.stream.codec_context
        has_hidden = track.stream.metadata.get("alpha_mode") == "1"
        decoder = ALPHA_DECODERS.get(context.name, "") if has_hidden else ""
        return cls(
            aspect=track.stream.sample_aspect_ratio,
            colours=(
                context.colorspace,
                context.color_range,
                context.color_primaries,
                context.color_trc,
            ),
            field_order=declared_order(context.field_order),
            alpha_decoder=decoder,
            hides_alpha=has_hidden and not decoder,
        )


@dataclass
class Seen:
    """What decoding a whole track showed."""

    times_s: list[float | None] = field(default_factory=list)
    last_frame_s: float = 0.0
    is_transparent: bool = False
    fields: FieldsSeen = field(default_factory=FieldsSeen)

    def add(self, frame: VideoFrame, said: Said) -> None:
        """Look at the next frame."""
        self.times_s.append(frame.time)
        base = frame.time_base
        self.last_frame_s = float(frame.duration * base) if frame.duration and base else 0.0
        if said.has_alpha and not self.is_transparent:
            self.is_transparent = is_transparent(frame)
        self.fields.add(frame, is_declared=said.field_order != "")


class Chosen(NamedTuple):
    """How a video is read, and what people should know of that."""

    reading: Reading
    notes: tuple[Note, ...]


def choose(said: Said, seen: Seen | None, choices: Choices) -> Chosen:
    """Choose how a track's pictures are read.

    Args:
        said: By headers and the first frame.
        seen: By all frames; None where only the first was looked at.
        choices: Of the settings.

    Raises:
        MediaFault: it cannot be read, or the settings refuse it.
    """
    if said.is_dolby_vision and not said.colours.is_usable_without_dolby_vision:
        raise MediaFault(
            "dolby-vision",
            f"{said.name} is Dolby Vision without a picture that others can show; convert it to "
            "HDR10, HLG or SDR",
        )
    colour, colour_notes = colours.choose_colours(
        said.colours,
        said.width,
        said.height,
        said.pixel_format,
        name=said.name,
        is_hdr_refused=choices.hdr == "refuse",
    )
    fields, field_notes = _choose_fields(said, seen, choices)
    alpha, alpha_notes = _choose_alpha(said, seen)
    aspect = _checked_aspect(said)
    notes = [said.track.note, said.turn_note]
    if aspect:
        width, height = displayed_size(said.width, said.height, aspect)
        message = f"its pixels are {aspect}: {said.width}x{said.height} is shown {width}x{height}"
        notes.append(Note(code="pixel-aspect", message=message))
    reading = Reading(
        track=said.track.number,
        aspect=aspect,
        matrix=colour.matrix,
        transfer=colour.transfer,
        primaries=colour.primaries,
        fields=fields,
        alpha=alpha,
        decoder=said.alpha_decoder if alpha else "",
    )
    found = [*notes, *colour_notes, *field_notes, *alpha_notes]
    return Chosen(reading, tuple(note for note in found if note is not None))


def displayed_size(width: int, height: int, aspect: str) -> tuple[int, int]:
    """Give the size at which stored pictures are shown, before they are turned."""
    if not aspect:
        return width, height
    across, down = map(int, aspect.split(":"))
    return max(1, (2 * width * across + down) // (2 * down)), height


def _aspect(track: Track, header: Header) -> Fraction:
    """The stream's own, else the codec's, which may be known after the first frame only."""
    found = header.aspect or track.stream.sample_aspect_ratio
    found = found or track.stream.codec_context.sample_aspect_ratio
    return found if found and found > 0 else Fraction(1)


def _checked_aspect(said: Said) -> str:
    ratio = said.aspect
    text = f"{ratio.numerator}:{ratio.denominator}"
    width, height = displayed_size(said.width, said.height, text)
    if not Fraction(1, MOST_OBLONG) <= ratio <= MOST_OBLONG or width > MAX_SIDE:
        raise MediaFault(
            "odd-aspect",
            f"{said.name} says that its pixels are {text}, which no screen shows; correct its "
            "aspect ratio",
        )
    return "" if (width, height) == (said.width, said.height) else text


def _choose_fields(
    said: Said, seen: Seen | None, choices: Choices
) -> tuple[Literal["", "flagged", "tff", "bff"], list[Note]]:
    if seen is None:
        num_flagged, is_woven = int(said.is_field_flagged), True
    else:
        num_flagged, is_woven = seen.fields.num_flagged, seen.fields.is_woven()
    if not num_flagged and not said.field_order:
        return "", []
    if not is_woven:
        message = "it is flagged as interlaced but shows no comb: its frames stay as they are"
        return "", [Note(code="progressive", message=message)]
    if choices.interlaced == "refuse":
        raise MediaFault(
            "interlaced",
            f"{said.name} is interlaced; deinterlace it, or set ingest.interlaced to deinterlace",
        )
    if num_flagged:
        total = len(seen.times_s) if seen is not None else num_flagged
        some = "its" if num_flagged == total else f"{num_flagged} of its {total}"
        message = f"{some} frames are interlaced: deinterlaced (bwdif), none added"
        return "flagged", [Note(code="interlaced", message=message)]
    message = f"its header says interlaced ({said.field_order}): deinterlaced (bwdif)"
    return said.field_order, [Note(code="interlaced", message=message)]


def _choose_alpha(said: Said, seen: Seen | None) -> tuple[Literal["", "white"], list[Note]]:
    if said.hides_alpha:
        message = "it says that it is transparent, but its decoder shows no transparency"
        return "", [Note(code="hidden-alpha", message=message)]
    if not said.has_alpha or (seen is not None and not seen.is_transparent):
        return "", []
    message = "it is transparent: laid over white, its colours taken as not multiplied by alpha"
    return "white", [Note(code="transparent", message=message)]

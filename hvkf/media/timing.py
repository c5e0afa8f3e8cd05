"""When frames are shown: frame rates, repaired timestamps, and resampling by them.

Timestamps decide. A mean rate stands for them only where every frame lies within half a frame of
the place that it gives.
"""

import bisect
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import NamedTuple

from hvkf.records import Note

UNKNOWN_RATE = Fraction(25)
"""What libav assumes of streams without times."""
MAX_PAUSE_S = 60.0
"""No longer is a picture held among others that follow each other fast: it is a jump."""
PAUSE_FACTOR = 100
SHORTEST_STEP_S = 1e-6
SLOWEST_RESAMPLED = 1.0
"""Frames per second under which resampling would make stills of a time-lapse."""
ENDS_AT = 1001
"""Rates are fractions with denominators up to this: 30000/1001."""


class Timing(NamedTuple):
    """How fast frames follow each other.

    `fps` is the mean rate. `times_s` holds each frame's time from the first one's on where the rate
    is variable, and nothing where it is constant.
    """

    fps: Fraction
    is_variable: bool
    times_s: tuple[float, ...]
    duration_s: float
    notes: tuple[Note, ...]


def timing(
    times_s: Sequence[float | None], last_frame_s: float, declared: Fraction | None
) -> Timing:
    """Find a video's frame rate from its frames' timestamps.

    Args:
        times_s: of each frame in the order of presentation; None where the file gives none.
        last_frame_s: how long the last frame is shown, or 0 where the file does not say.
        declared: the container's own rate.
    """
    repaired, notes = _repaired(times_s, declared)
    if not repaired:
        fps = declared or UNKNOWN_RATE
        return Timing(fps, False, (), float(len(times_s) / fps), notes)
    measured = (len(repaired) - 1) / repaired[-1]
    is_plausible = declared is not None and abs(float(declared) / measured - 1) < 0.01
    fps = declared if declared and is_plausible else _as_fraction(measured)
    if all(abs(time * float(fps) - index) <= 0.5 for index, time in enumerate(repaired)):
        return Timing(fps, False, (), float(len(repaired) / fps), notes)
    usual = statistics.median(b - a for a, b in pairwise(repaired))
    last = last_frame_s if 0 < last_frame_s <= MAX_PAUSE_S else usual
    message = f"its frame rate is variable: {float(fps):.3g} frames a second on average"
    if usual > SHORTEST_STEP_S:
        message += f", {1 / usual:.3g} mostly"
    times = tuple(round(time, 6) for time in repaired)
    return Timing(
        fps, True, times, times[-1] + last, (*notes, Note(code="variable-fps", message=message))
    )


def _as_fraction(rate: float) -> Fraction:
    if rate >= 1:
        return Fraction(rate).limit_denominator(ENDS_AT)
    return 1 / Fraction(1 / rate).limit_denominator(ENDS_AT)


def _repaired(
    times_s: Sequence[float | None], declared: Fraction | None
) -> tuple[list[float], tuple[Note, ...]]:
    """Give times from 0 on that never decrease; nothing when there are none to go by."""
    known = [time for time in times_s if time is not None]
    steps = [b - a for a, b in pairwise(known) if b - a > SHORTEST_STEP_S]
    if not steps:
        message = "it has no timestamps: the container's frame rate is taken"
        return [], (_note(message),) if len(times_s) > 1 else ()
    usual = statistics.median(steps)
    if len(known) < len(times_s) and declared:
        usual = float(1 / declared)
    longest = max(MAX_PAUSE_S, PAUSE_FACTOR * usual)
    broken = Counter(_what_is_wrong(a, b, longest) for a, b in pairwise(times_s))
    if set(broken) <= {""}:
        return [time - known[0] for time in known], ()
    gaps = [
        usual if a is None or b is None or _what_is_wrong(a, b, longest) else b - a
        for a, b in pairwise(times_s)
    ]
    notes = [
        _note(f"{count} of its timestamps {kind}: frames follow at {usual:.3g} s there")
        for kind, count in sorted(broken.items())
        if kind
    ]
    return list(accumulate(gaps, initial=0.0)), tuple(notes)


def _note(message: str) -> Note:
    return Note(code="timestamps", message=message)


def _what_is_wrong(before: float | None, time: float | None, longest: float) -> str:
    if before is None or time is None:
        return "are missing"
    if time < before:
        return "go back"
    return f"jump by over {longest:.3g} s" if time - before > longest else ""


def resample_indices(
    num_frames: int, fps: float | Fraction, target_fps: float | Fraction | None
) -> list[int]:
    """List, for each frame at `target_fps`, the source frame nearest to it in time.

    For frames at a constant rate. Halves round upwards, in the number of frames too; frames repeat
    when `target_fps` is higher. The identity when `target_fps` is None.
    """
    if target_fps is None:
        return list(range(num_frames))
    step = Fraction(fps) / Fraction(target_fps)  # source frames per frame made
    half = Fraction(1, 2)
    num_made = math.floor(num_frames / step + half)
    return [min(num_frames - 1, math.floor(i * step + half)) for i in range(num_made)]


def resample_times(times_s: Sequence[float], duration_s: float, target_fps: float) -> list[int]:
    """List, for each frame at `target_fps`, the source frame that is shown at its time.

    For frames at a variable rate. The next frame is taken when it is nearer, and comes within half
    a frame at `target_fps`: long before its time no frame is shown.

    Args:
        times_s: of the source frames, ascending.
        duration_s: from the first frame to the end of the last.
        target_fps: frames per second to make.
    """
    start = times_s[0]
    half = 0.5 / target_fps
    made = []
    # Halves round upwards, as far as microseconds tell.
    for i in range(math.floor(duration_s * target_fps + 0.5 + 1e-6)):
        time = start + i / target_fps
        shown = bisect.bisect_right(times_s, time) - 1
        following = shown + 1
        if following < len(times_s):
            ahead_s = times_s[following] - time
            if ahead_s <= half and ahead_s <= time - times_s[shown]:
                # Of several with one time the last is what stays to be seen.
                shown = bisect.bisect_right(times_s, times_s[following]) - 1
        made.append(shown)
    return made

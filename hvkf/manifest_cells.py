"""Reads single cells of a manifest: each value as people and spreadsheets write it, or a fault.

A fault is a ValueError that says the fix; whoever catches it names the row and the column.
"""

import json
import math
import posixpath
import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any

from hvkf.buckets import SIDE_MULTIPLE, TEMPORAL_MULTIPLE
from hvkf.model_source import WORKSPACE_SCHEME

MAX_SIDE = 4096
MIN_FRAMES, MAX_FRAMES = 5, 513
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
SEED_LIMIT = 1 << 63


def is_missing(value: object) -> bool:
    """Say whether a cell is empty: nothing, white space, or a spreadsheet's NaN."""
    is_nan = isinstance(value, float) and math.isnan(value)
    return value is None or is_nan or (isinstance(value, str) and not value.strip())


def text_of(value: object) -> str:
    """Read text that can be stored: JSON can spell what UTF-8 cannot."""
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("write text")
    if "\0" in value:
        raise ValueError("remove the NUL character")
    return value


def _id(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if is_missing(value):
        raise ValueError("give the row a name of its own")
    text = text_of(value).strip()
    if not text.isprintable() or "/" in text or "\\" in text:
        raise ValueError("write printable characters without slashes")
    return text


def frame_of(value: object, folder: str, allowed: Sequence[str]) -> str:
    """Read an image's path; `folder` is the manifest's, `allowed` are further ones it may be in."""
    if is_missing(value):
        raise ValueError("write an image's path, relative to the manifest")
    text = text_of(value).strip()
    if text.startswith(WORKSPACE_SCHEME):
        path = PurePosixPath(text.removeprefix(WORKSPACE_SCHEME))
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError("it leaves the workspace; write workspace:PATH without '..'")
        return f"{WORKSPACE_SCHEME}{path}"
    if text.startswith("/") or re.match(r"[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]*://", text):
        return _allowed(
            text,
            allowed,
            "write it relative to the manifest's folder, or add its folder to "
            "render.allowed_folders",
        )
    if "\\" in text:
        raise ValueError("write forward slashes")
    if ".." in PurePosixPath(text).parts:
        return _allowed(
            f"{folder}/{text}",
            allowed,
            "it leaves the manifest's folder; move the image there, drop the '..', or add its "
            "folder to render.allowed_folders",
        )
    return str(PurePosixPath(text))


def _allowed(address: str, allowed: Sequence[str], fix: str) -> str:
    """Give the address without detours, if it lies in an allowed folder."""
    scheme = "s3://" if address.startswith("s3://") else ""
    plain = scheme + posixpath.normpath(address.removeprefix(scheme))
    if not any(plain.startswith(folder.rstrip("/") + "/") for folder in allowed):
        raise ValueError(fix)
    return plain


def _prompt(value: object) -> str:
    if is_missing(value):
        raise ValueError("write what happens in the video")
    return text_of(value).strip()


def _negative_prompt(value: object) -> str:
    return "" if is_missing(value) else text_of(value).strip()


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("write a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError("write a number") from None
    if not math.isfinite(number):
        raise ValueError("write a finite number")
    return number


def whole_of(value: object) -> int:
    """Read a whole number, such as 12, "12" or "12.0"."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,30}\s*", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = _number(value)
    if not number.is_integer():
        raise ValueError("write a whole number")
    return int(number)


def _side(value: object) -> int:
    side = whole_of(value)
    if not SIDE_MULTIPLE <= side <= MAX_SIDE or side % SIDE_MULTIPLE:
        near = _two_nearest(side, SIDE_MULTIPLE, 0, (SIDE_MULTIPLE, MAX_SIDE))
        raise ValueError(f"write a multiple of {SIDE_MULTIPLE} up to {MAX_SIDE}, such as {near}")
    return side


def _num_frames(value: object) -> int:
    count = whole_of(value)
    if not MIN_FRAMES <= count <= MAX_FRAMES or count % TEMPORAL_MULTIPLE != 1:
        near = _two_nearest(count, TEMPORAL_MULTIPLE, 1, (MIN_FRAMES, MAX_FRAMES))
        raise ValueError(f"write 4k+1, from {MIN_FRAMES} to {MAX_FRAMES}, such as {near}")
    return count


def _two_nearest(value: int, multiple: int, offset: int, limits: tuple[int, int]) -> str:
    below = (value - offset) // multiple * multiple + offset
    near = {min(max(choice, limits[0]), limits[1]) for choice in (below, below + multiple)}
    return " or ".join(map(str, sorted(near)))


def _steps(value: object) -> int:
    steps = whole_of(value)
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"write a number of steps from 1 to {MAX_STEPS}")
    return steps


def _guidance(value: object) -> float:
    guidance = _number(value)
    if not 0 <= guidance <= MAX_GUIDANCE:
        raise ValueError(f"write a number from 0 to {MAX_GUIDANCE:g}")
    return guidance


def _true_cfg_scale(value: object) -> float:
    scale = _number(value)
    if not 1 <= scale <= MAX_GUIDANCE:
        raise ValueError(f"write 1 for none, or more, up to {MAX_GUIDANCE:g}")
    return scale


def _seed(value: object) -> int:
    seed = whole_of(value)
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError("write a whole number from 0, of at most 63 bits")
    return seed


PARSERS: dict[str, Callable[[object], Any]] = {
    "id": _id,
    "prompt": _prompt,
    "negative_prompt": _negative_prompt,
    "lora": lambda value: text_of(value).strip(),
    "tags": lambda value: str(value).strip() if isinstance(value, int) else text_of(value).strip(),
    "true_cfg_scale": _true_cfg_scale,
    "width": _side,
    "height": _side,
    "num_frames": _num_frames,
    "steps": _steps,
    "guidance": _guidance,
    "seed": _seed,
}


def pairs_of(value: object) -> list[Any]:
    """Read [[position, image], ...], which a CSV holds as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, list) or not value:
        raise ValueError('write [[0, "a.png"], [16, "b.png"]]')
    pairs: list[Any] = value
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError('write [[0, "a.png"], [16, "b.png"]]')
    return pairs

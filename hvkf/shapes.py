"""Synthetic captioned clips: one or two flat shapes that move, grow, turn or change colour.

Shape suffixes: F frames, H rows, W columns, C colour channels. Lengths are fractions of the
frame's side, angles are radians, colours are RGB levels from 0 to 255.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hvkf.errors import BadInput
from hvkf.media.writing import write_mp4
from hvkf.seeds import seed_for

Array = NDArray[np.float64]

SHAPE_COLOURS = {
    "red": (215, 65, 60),
    "green": (75, 180, 85),
    "blue": (70, 105, 210),
    "yellow": (230, 205, 80),
    "purple": (150, 85, 185),
    "orange": (235, 145, 60),
    "white": (230, 230, 225),
}
BACKGROUND_COLOURS = {
    "grey": (118, 118, 122),
    "blue": (82, 104, 150),
    "green": (92, 132, 100),
    "brown": (134, 108, 86),
    "pink": (178, 138, 150),
    "teal": (82, 136, 140),
}
PLACES = {
    "top left": (0.27, 0.27),
    "top": (0.5, 0.27),
    "top right": (0.73, 0.27),
    "left": (0.27, 0.5),
    "centre": (0.5, 0.5),
    "right": (0.73, 0.5),
    "bottom left": (0.27, 0.73),
    "bottom": (0.5, 0.73),
    "bottom right": (0.73, 0.73),
}
KINDS = ("disc", "square", "triangle")
MOVES_SHARE = 0.85
"""How many of the shapes travel; the rest grow, shrink, turn or change colour on the spot."""
SECOND_SHAPE_SHARE = 0.35
SHORTEST_WAY = 0.3
"""Between the two places of a shape that travels: less, and a cross-fade would do."""
PLACE_JITTER = 0.04
COLOUR_JITTER = 6.0
LOSSLESS_ENOUGH_CRF = 4
"""At 64x64 x264's usual quality would blur what the clips are about."""


@dataclass(frozen=True)
class _State:
    """What a shape is at one moment; every field changes linearly in time."""

    x: float
    y: float
    radius: float
    angle: float
    colour: tuple[float, ...]

    def vector(self) -> Array:
        return np.array([self.x, self.y, self.radius, self.angle, *self.colour])


@dataclass(frozen=True)
class _Shape:
    kind: str
    start: _State
    end: _State
    caption: str


def render_clip(
    seed: int, index: int, num_frames: int, size: int = 64
) -> tuple[NDArray[np.uint8], str]:
    """Draw clip `index` of the data set `seed`.

    Every clip goes from a start to an end state at constant speed, so that one clip at 17 and at
    33 frames differs in speed alone. Edges are anti-aliased by each pixel's signed distance to
    the outline. The caption tells the shapes and what becomes of them, not the background: that
    only the keyframes know.

    Args:
        seed: names the data set.
        index: names the clip; equal pairs of both give equal clips.
        num_frames: how many frames lie between start and end, both included; at least 1.
        size: height and width in pixels.

    Returns:
        Frames as uint8 RGB, FHWC, and the caption.

    Raises:
        BadInput: there are no frames or no pixels to draw.
    """
    if num_frames < 1 or size < 1:
        raise BadInput(
            f"A clip of {num_frames} frames of {size} pixels cannot be drawn: ask for 1 or more."
        )
    draws = np.random.default_rng(seed_for(seed, "shapes", index))
    background_name = str(draws.choice(list(BACKGROUND_COLOURS)))
    background_HWC = _background(draws, background_name, size)
    shapes = _draw_shapes(draws, background_name)
    moments = np.linspace(0.0, 1.0, num_frames)
    frames = np.stack([_frame(background_HWC, shapes, moment) for moment in moments])
    caption = " and ".join(shape.caption for shape in shapes).removesuffix(",")
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8), caption


def write_dataset(
    folder: str | Path, num_clips: int, num_frames: int, seed: int, *, first_index: int = 0
) -> Path:
    """Write clips as `metadata.csv` (columns `video_file`, `caption`) beside `videos/*.mp4`.

    Args:
        folder: is made when missing; files of the same names are replaced.
        num_clips: how many clips to write.
        num_frames: of each clip.
        seed: names the data set.
        first_index: of the first clip; apart ranges make training and held-out sets.

    Returns:
        The path of `metadata.csv`.

    Raises:
        BadInput: there are no frames to draw.
        DiskFull: there is no room.
    """
    base = Path(folder)
    (base / "videos").mkdir(parents=True, exist_ok=True)
    metadata = base / "metadata.csv"
    with metadata.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["video_file", "caption"])
        for index in range(first_index, first_index + num_clips):
            frames_FHWC, caption = render_clip(seed, index, num_frames)
            name = f"videos/clip-{index:06d}.mp4"
            write_mp4(base / name, frames_FHWC, crf=LOSSLESS_ENOUGH_CRF)
            rows.writerow([name, caption])
    return metadata


def _background(draws: np.random.Generator, name: str, size: int) -> Array:
    """A slope between two shades of one colour under one slow wave of brightness."""
    y, x = _pixel_centres(size)
    slope_angle, wave_angle, phase = draws.uniform(0, 2 * np.pi, 3)
    slope = np.cos(slope_angle) * (x - 0.5) + np.sin(slope_angle) * (y - 0.5)
    along = np.cos(wave_angle) * x + np.sin(wave_angle) * y
    wave = np.sin(2 * np.pi * draws.uniform(0.8, 1.6) * along + phase)
    shade = draws.uniform(20, 45) * slope + draws.uniform(3, 8) * wave
    colour = np.array(BACKGROUND_COLOURS[name]) + draws.uniform(-COLOUR_JITTER, COLOUR_JITTER, 3)
    tint = draws.uniform(0.8, 1.2, 3)
    return np.asarray(colour + shade[..., None] * tint, dtype=np.float64)


def _draw_shapes(draws: np.random.Generator, background_name: str) -> list[_Shape]:
    count = 2 if draws.random() < SECOND_SHAPE_SHARE else 1
    colours = [name for name in SHAPE_COLOURS if name != background_name]
    chosen = [str(name) for name in draws.choice(colours, 2 * count, replace=False)]
    starts = [str(name) for name in draws.choice(list(PLACES), count, replace=False)]
    return [
        _draw_shape(draws, chosen[2 * number :][:2], start) for number, start in enumerate(starts)
    ]


def _draw_shape(draws: np.random.Generator, colours: list[str], start: str) -> _Shape:
    kind = str(draws.choice(KINDS))
    moves = bool(draws.random() < MOVES_SHARE)
    changes = ["grows", "shrinks", "changes"] + ([] if kind == "disc" else ["turns"])
    # What stays in its place must change in another way; what travels may stay as it is.
    change = str(draws.choice(changes)) if not moves or draws.random() < 0.4 else ""
    usual = draws.uniform(0.15, 0.22)
    small, large = 0.11, 0.24
    radius = {"grows": (small, large), "shrinks": (large, small)}.get(change, (usual, usual))
    angle = draws.uniform(0, 2 * np.pi) if kind != "disc" else 0.0
    # Half of what would turn the shape into itself: the end looks as unlike the start as can be.
    turn = {"square": np.pi / 4, "triangle": np.pi / 3}[kind] if change == "turns" else 0.0
    end_colour = colours[1] if change == "changes" else colours[0]
    far = [name for name in PLACES if math.dist(PLACES[name], PLACES[start]) >= SHORTEST_WAY]
    places = [start, str(draws.choice(far)) if moves else start]
    (x, y), (end_x, end_y) = (
        np.array(PLACES[place]) + draws.uniform(-PLACE_JITTER, PLACE_JITTER, 2) for place in places
    )
    if not moves:
        end_x, end_y = x, y
    jitter = draws.uniform(-COLOUR_JITTER, COLOUR_JITTER, (2, 3))
    start_rgb = tuple(np.array(SHAPE_COLOURS[colours[0]]) + jitter[0])
    end_rgb = tuple(np.array(SHAPE_COLOURS[end_colour]) + jitter[1])
    return _Shape(
        kind,
        _State(x, y, radius[0], angle, start_rgb),
        _State(
            end_x, end_y, radius[1], angle + turn, end_rgb if change == "changes" else start_rgb
        ),
        _caption(colours[0], end_colour, kind, change, places),
    )


def _caption(colour: str, end_colour: str, kind: str, change: str, places: list[str]) -> str:
    article = "an" if colour == "orange" else "a"
    change = f"changes to {end_colour}" if change == "changes" else change
    if places[0] == places[1]:
        return f"{article} {colour} {kind} {change} at the {places[0]}"
    caption = f"{article} {colour} {kind} moves from the {places[0]} to the {places[1]}"
    return f"{caption}, {change}," if change else caption


def _frame(background_HWC: Array, shapes: list[_Shape], moment: float) -> Array:
    frame_HWC = background_HWC
    size = background_HWC.shape[0]
    for shape in shapes:
        now = (1 - moment) * shape.start.vector() + moment * shape.end.vector()
        distance = _signed_distance(shape.kind, now[:4], size)
        coverage_HW1 = np.clip(0.5 - distance * size, 0.0, 1.0)[..., None]
        frame_HWC = (1 - coverage_HW1) * frame_HWC + coverage_HW1 * now[4:]
    return frame_HWC


def _signed_distance(kind: str, pose: Array, size: int) -> Array:
    """How far each pixel's centre lies outside the outline; negative inside."""
    x, y, radius, angle = pose
    rows, columns = _pixel_centres(size)
    across, down = columns - x, rows - y
    if kind == "disc":
        return np.asarray(np.hypot(across, down) - radius)
    # Equal areas look equally large: a regular n-gon of apothem a has area n a^2 tan(pi / n).
    num_sides = 4 if kind == "square" else 3
    apothem = radius * np.sqrt(np.pi / (num_sides * np.tan(np.pi / num_sides)))
    normals = angle + 2 * np.pi * np.arange(num_sides) / num_sides
    return np.asarray(
        np.max([np.cos(a) * across + np.sin(a) * down for a in normals], axis=0) - apothem
    )


def _pixel_centres(size: int) -> tuple[Array, Array]:
    line = (np.arange(size) + 0.5) / size
    rows, columns = np.meshgrid(line, line, indexing="ij")
    return rows, columns

"""What rendering will cost: past runs of a shape say how long its rows take and how large they are.

Workers put a small record for each shape and kind of device; planning reads them to size parts and
to write a quote.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

from pydantic import Field

from hvkf.buckets import Bucket
from hvkf.errors import BadInput, CorruptData
from hvkf.manifest import ManifestRow
from hvkf.records import FORMAT_VERSION, Failure, Record
from hvkf.settings.rendering import RenderConfig
from hvkf.shown import counted
from hvkf.storage import Store
from hvkf.stored import read_record

logger = logging.getLogger(__name__)
TIMINGS = "timings/render"
LATENT_PATCH_PIXELS = 16 * 16
FRAMES_PER_LATENT = 4
BYTES_PER_GB = 1e9
MAX_KEPT_FAILURES = 1000


NotNegative = Annotated[float, Field(ge=0)]


class Timing(Record):
    """How long rows of a shape took on a kind of device, and their mean size; the newest counts.

    A row takes `row_s` and `step_s` for each step; with a negative prompt a step takes twice that.
    """

    format_version: int = FORMAT_VERSION
    shape: str
    device: str
    num_rows: int
    row_s: NotNegative
    step_s: NotNegative
    row_bytes: NotNegative


class Estimate(NamedTuple):
    """Seconds and bytes of a row; None where no run of the past tells."""

    seconds: float | None
    num_bytes: float | None


def put_timing(store: Store, timing: Timing) -> None:
    """Keep how long a shape took; the newest replaces earlier ones of that device."""
    device = "".join(letter if letter.isalnum() else "-" for letter in timing.device.lower())
    store.put(f"{TIMINGS}/{timing.shape}/{device}.json", timing.to_json())


class Pace:
    """How long a worker's rows took; loading and each shape's first row do not count.

    The first row of a shape warms kernels up, or compiles them.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._by_shape: dict[str, list[tuple[float, float, float]]] = {}

    def add(
        self, shape: str, seconds: float, step_s: float, num_passes: int, num_bytes: int
    ) -> None:
        """Count a row that took `seconds`, of them `step_s` in each pass of the transformer."""
        rest_s = max(0.0, seconds - step_s * num_passes)
        self._by_shape.setdefault(shape, []).append((rest_s, step_s, float(num_bytes)))

    def put(self, store: Store) -> None:
        """Keep the means for planning."""
        for shape, rows in self._by_shape.items():
            counted = rows[1:] or rows
            row_s, step_s, row_bytes = (
                sum(part) / len(counted) for part in zip(*counted, strict=True)
            )
            put_timing(
                store,
                Timing(
                    shape=shape,
                    device=self._device,
                    num_rows=len(counted),
                    row_s=row_s,
                    step_s=step_s,
                    row_bytes=row_bytes,
                ),
            )


class PastRuns:
    """Estimates rows from the workspace's timings: of their shape, or scaled from the nearest."""

    def __init__(self, store: Store) -> None:
        self._by_shape: dict[str, list[Timing]] = {}
        for path in store.list(TIMINGS):
            timing = _read_timing(store, path)
            if timing is not None:
                self._by_shape.setdefault(timing.shape, []).append(timing)

    def estimate(self, row: ManifestRow) -> Estimate:
        """Estimate one row; of several kinds of device the slowest is taken."""
        if not self._by_shape:
            return Estimate(None, None)
        size = _num_tokens(row.shape)
        nearest = min(self._by_shape, key=lambda shape: abs(_num_tokens(shape) - size))
        timings = self._by_shape.get(row.shape) or self._by_shape[nearest]
        factor = size / _num_tokens(timings[0].shape)
        passes = row.steps * (2 if row.true_cfg_scale > 1 else 1)
        seconds = max(timing.row_s + passes * timing.step_s for timing in timings) * factor
        return Estimate(seconds, max(timing.row_bytes for timing in timings) * factor)

    def knows(self, shape: str) -> bool:
        """Whether rows of just this shape were rendered."""
        return shape in self._by_shape


def _read_timing(store: Store, path: str) -> Timing | None:
    """Read how long a shape took; None with a warning where that does not read: it is a hint."""
    try:
        timing = read_record(store, path, Timing)
        Bucket.parse(timing.shape)
    except (CorruptData, BadInput) as fault:
        logger.warning("%s Rendering goes on without it.", fault)
        return None
    except FileNotFoundError:  # deleted since it was listed
        return None
    return timing


def _num_tokens(shape: str) -> int:
    bucket = Bucket.parse(shape)
    latents = (bucket.num_frames - 1) // FRAMES_PER_LATENT + 1
    return latents * bucket.width * bucket.height // LATENT_PATCH_PIXELS


class Candidate(NamedTuple):
    """What cutting into parts needs to know of a row."""

    place: int
    lora: str
    shape: str
    row: int
    seconds: float | None


def cut_into_parts(rows: Iterable[Candidate], config: RenderConfig) -> list[list[int]]:
    """Put equal LoRAs and shapes together and cut at the set cost, or count where it is unknown.

    A part has one LoRA, so that its models are loaded once.

    Returns:
        The rows' places, part by part.
    """
    limit_s = config.part_minutes * 60
    parts: list[list[int]] = []
    lora: str | None = None
    share = 0.0
    for row in sorted(rows, key=lambda row: (row.lora, row.shape, row.row)):
        cost = 1 / config.rows_per_part if row.seconds is None else row.seconds / limit_s
        if row.lora != lora or share + cost > 1 + 1e-9:
            parts.append([])
            share = 0.0
        lora = row.lora
        share += cost
        parts[-1].append(row.place)
    return parts


class Group(Record):
    """The rows of one shape and LoRA that are still to be rendered."""

    lora: str
    shape: str
    num_rows: int
    seconds: float | None
    num_bytes: float | None
    is_scaled: bool


class Quote(Record):
    """What a manifest asks for, what is there already, and what the rest will take."""

    num_rows: int
    num_rendered: int
    num_repeated: int
    num_failed: int
    num_parts: int
    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    failures: tuple[Failure, ...] = ()

    def lines(self, *, with_failures: bool = True) -> list[str]:
        """Write the quote for people; the rows' failures may be told elsewhere."""
        to_do = sum(group.num_rows for group in self.groups)
        lines = [
            f"{counted(self.num_rows, 'row')}: {self.num_rendered} rendered before, "
            f"{self.num_repeated} repeated, {self.num_failed} that cannot be rendered, {to_do} to "
            f"render in {counted(self.num_parts, 'part')}"
        ]
        for group in self.groups:
            lines.append(
                f"  {counted(group.num_rows, 'row')} of {group.shape}, LoRA {group.lora}: "
                f"{_cost(group)}"
            )
        known = [group for group in self.groups if group.seconds is not None]
        if known:
            hours = sum(group.seconds or 0 for group in known) / 3600
            gigabytes = sum(group.num_bytes or 0 for group in known) / BYTES_PER_GB
            lines.append(f"in all {hours:.2f} device-hours, {gigabytes:.2f} GB")
        lines += self.notes
        if not with_failures:
            return lines
        lines += [f"{fault.source}: {fault.message} [{fault.code}]" for fault in self.failures]
        more = self.num_failed - len(self.failures)
        rest = f"and {counted(more, 'more row')} that cannot be rendered"
        return [*lines, rest] if more > 0 else lines


def _cost(group: Group) -> str:
    if group.seconds is None or group.num_bytes is None:
        return "no run of the past tells how long they take"
    said = f"{group.seconds / 3600:.2f} device-hours, {group.num_bytes / BYTES_PER_GB:.2f} GB"
    return said + (" (scaled from another shape)" if group.is_scaled else "")


def groups_of(rows: Sequence[tuple[str, str, Estimate]], past: PastRuns) -> tuple[Group, ...]:
    """Sum up rows, given as LoRA, shape and estimate."""
    groups: dict[tuple[str, str], list[Estimate]] = {}
    for lora, shape, estimate in rows:
        groups.setdefault((lora, shape), []).append(estimate)
    return tuple(
        Group(
            lora=lora,
            shape=shape,
            num_rows=len(estimates),
            seconds=_sum(estimate.seconds for estimate in estimates),
            num_bytes=_sum(estimate.num_bytes for estimate in estimates),
            is_scaled=not past.knows(shape),
        )
        for (lora, shape), estimates in sorted(groups.items())
    )


def _sum(values: Iterable[float | None]) -> float | None:
    listed = list(values)
    known = [value for value in listed if value is not None]
    return sum(known) if len(known) == len(listed) else None

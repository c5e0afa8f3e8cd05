"""The render manifest: one keyframe pair per row, as CSV, JSON, JSONL or Parquet.

All faults of a manifest are found before anything is done, and said together.
"""

import difflib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hvkf.errors import BadInput, ConfigError
from hvkf.manifest_cells import PARSERS, frame_of, is_missing, pairs_of, whole_of
from hvkf.manifest_errors import ManifestError, RowError, RowImages
from hvkf.records import Record
from hvkf.settings.rendering import RenderConfig
from hvkf.shown import shown
from hvkf.storage import Store
from hvkf.table_files import Row, TableFile, read_file

PASTED = "manifests/pasted"
ENDS = ("first_frame", "last_frame")
REQUIRED = ("id", *ENDS, "prompt")
NUMBERS = ("width", "height", "num_frames", "steps", "guidance", "true_cfg_scale", "seed")
OPTIONAL = (*NUMBERS, "lora", "negative_prompt")
COLUMNS = (*REQUIRED, "keyframes", "tags", *OPTIONAL)
MAX_KEPT_ERRORS = 100_000
MORE_CELLS = "it has more cells than the header: put prompts that hold the separator in quotes"
SIMILAR_NAME = 0.75
MAX_COLUMN_LETTERS = 32
MAX_HINTS = 5


# Field, value and fix; the field is empty where the whole row is meant.
Problem = tuple[str, str, str]


class ManifestRow(Record):
    """One keyframe pair to render, its gaps filled from the settings.

    `row` counts from 1. A row has a first and a last frame, or `keyframes` at other positions.
    Frames are paths relative to the manifest's folder, workspace:PATH, or addresses in an allowed
    folder. An empty `lora` is the settings' one.
    """

    row: int
    id: str
    first_frame: str = ""
    last_frame: str = ""
    keyframes: tuple[tuple[int, str], ...] = ()
    prompt: str
    width: int
    height: int
    num_frames: int
    steps: int
    guidance: float
    true_cfg_scale: float = 1.0
    negative_prompt: str = ""
    seed: int
    lora: str = ""
    tags: str = ""

    @property
    def frames(self) -> tuple[tuple[int, str], ...]:
        """Position and path of every keyframe, in order; positions count from 0."""
        ends = ((0, self.first_frame), (self.num_frames - 1, self.last_frame))
        return self.keyframes or ends

    @property
    def shape(self) -> str:
        """Size and length as WxHxF."""
        return f"{self.width}x{self.height}x{self.num_frames}"


class Location(NamedTuple):
    """A file, and the folder or `s3://` prefix that it lies in."""

    folder: str
    name: str


def split_location(path: str) -> Location:
    """Split a path or an `s3://` address into its folder and its file's name."""
    folder, _, name = path.rpartition("/")
    return Location(folder or ("/" if path.startswith("/") else "."), name)


def read_manifest(
    defaults: RenderConfig, check_lora: Callable[[str], object] = lambda spec: None
) -> Iterator[ManifestRow]:
    """Read the manifest that the settings name, from a folder or from `s3://`.

    Raises:
        BadInput: none is set, there is no such file, or see `stream_manifest`.
    """
    data = manifest_bytes(defaults)
    assert defaults.manifest is not None
    return stream_manifest(data, defaults.manifest, defaults, check_lora)


def manifest_bytes(defaults: RenderConfig) -> bytes:
    """Read the manifest's file.

    Raises:
        BadInput: none is set, or there is no such file.
    """
    if defaults.manifest is None:
        raise BadInput(
            "render.manifest is not set: name a CSV, JSON, JSONL or Parquet file with the columns "
            f"{', '.join(REQUIRED)}."
        )
    return read_file(
        defaults.manifest,
        f"There is no manifest {defaults.manifest!r}: set render.manifest to a file with the "
        f"columns {', '.join(REQUIRED)}.",
        "manifest",
    )


def keep_pasted_rows(text: str, store: Store) -> str:
    """Store rows that a person pasted as a manifest named by its content; return its address.

    Args:
        text: CSV with a header, a JSON list, or JSON Lines.
        store: The workspace.
    """
    suffix = {"[": ".json", "{": ".jsonl"}.get(text.lstrip()[:1], ".csv")
    data = text.strip().encode() + b"\n"
    path = f"{PASTED}/{hashlib.sha256(data).hexdigest()}{suffix}"
    store.put(path, data)
    return f"{store.url}/{path}"


def parse_manifest(data: bytes, name: str, defaults: RenderConfig) -> list[ManifestRow]:
    """Read all rows of a manifest from its bytes; see `stream_manifest`."""
    return list(stream_manifest(data, name, defaults))


def stream_manifest(
    data: bytes,
    name: str,
    defaults: RenderConfig,
    check_lora: Callable[[str], object] = lambda spec: None,
) -> Iterator[ManifestRow]:
    """Yield the rows of a manifest; its errors are said at the end, all together.

    Args:
        data: See `TableFile`.
        name: The manifest's path; says the format and stands in messages.
        defaults: What a row without a width, height, num_frames, steps, guidance or seed gets.
        check_lora: Raises BadInput for a LoRA that is not there; called once for each name.

    Raises:
        ConfigError: a default cannot be rendered.
        BadInput: the file is broken or has no rows.
        ManifestError: with every row's errors.
    """
    parser = _RowParser(name, defaults, check_lora)
    errors: list[RowError] = []
    table = TableFile(data, name, COLUMNS, "manifest")
    number = 0
    for row in table:
        number = row.number
        parsed, problems = parser.parse(row)
        errors += problems[: MAX_KEPT_ERRORS - len(errors)]
        if not errors:
            yield ManifestRow.model_validate({"row": number, **parsed})
    if not number:
        raise BadInput(f"The manifest {name} has no rows: add a row for each pair.")
    _check_columns(list(table.columns), name)
    if errors:
        raise ManifestError(name, errors, number)


def images_of_rows(defaults: RenderConfig) -> Iterator[RowImages]:
    """Read the images of all rows of a manifest again, as far as their cells can be read."""
    assert defaults.manifest is not None
    parser = _RowParser(defaults.manifest, defaults, lambda spec: None)
    data = read_file(defaults.manifest, f"There is no manifest {defaults.manifest!r} any more.")
    for row in TableFile(data, defaults.manifest, COLUMNS, "manifest"):
        parsed, _ = parser.parse(row)
        named = [(field, parsed[field]) for field in ENDS if parsed.get(field)]
        named += [("keyframes", path) for _, path in parsed.get("keyframes", ())]
        yield RowImages(row.number, parsed.get("id", ""), tuple(named))


class _RowParser:
    """Turns cells into a row's values and the problems with them."""

    def __init__(
        self, name: str, defaults: RenderConfig, check_lora: Callable[[str], object]
    ) -> None:
        self._folder = split_location(name).folder
        self._allowed = defaults.allowed_folders
        self._may_be_anywhere = defaults.keyframes == "any"
        self._filled = _check_defaults(defaults)
        self._check_lora = check_lora
        self._loras: dict[str, str] = {}
        self._first_with: dict[object, int] = {}

    def parse(self, row: Row) -> tuple[dict[str, Any], list[RowError]]:
        """Parse a row: its values, as far as they can be read, and what is wrong with it."""
        values = row.values
        parsed: dict[str, Any] = {}
        problems: list[Problem] = []
        if row.num_cells:
            problems.append(("", "", MORE_CELLS))
        for field in ("id", "prompt", *NUMBERS, "lora", "negative_prompt", "tags"):
            self._take(field, values.get(field), PARSERS[field], parsed, problems)
        self._take_frames(values, parsed, problems)
        lora = parsed.get("lora")
        if lora and (reason := self._lora_fault(lora)):
            problems.append(("lora", shown(lora), reason))
        first = self._first_with.setdefault(parsed.get("id", row.number), row.number)
        if first != row.number:
            reason = f"row {first} has it; rename one of them"
            problems.append(("id", shown(parsed["id"]), reason))
        name = parsed.get("id", "")
        return parsed, [RowError(row.number, name, *problem) for problem in problems]

    def _take_frames(
        self, values: Mapping[str, Any], parsed: dict[str, Any], problems: list[Problem]
    ) -> None:
        """Read the first and the last frame, or the keyframes in their place."""
        if is_missing(values.get("keyframes")):
            for field in ENDS:
                self._take(field, values.get(field), self._frame, parsed, problems)
            return
        count = parsed.get("num_frames")
        self._take(
            "keyframes",
            values["keyframes"],
            lambda value: self._keyframes(value, count),
            parsed,
            problems,
        )
        problems += [
            (field, shown(values[field]), "keyframes are given; leave one of them out")
            for field in ENDS
            if not is_missing(values.get(field))
        ]

    def _take(
        self,
        field: str,
        value: object,
        parse: Callable[[object], Any],
        parsed: dict[str, Any],
        problems: list[Problem],
    ) -> None:
        if field in self._filled and is_missing(value):
            parsed[field] = self._filled[field]
            return
        try:
            parsed[field] = parse(value)
        except ValueError as error:
            problems.append((field, shown(value), str(error)))

    def _lora_fault(self, lora: str) -> str:
        if lora not in self._loras:
            try:
                self._check_lora(lora)
                self._loras[lora] = ""
            except BadInput as fault:
                self._loras[lora] = str(fault).rstrip(".")
        return self._loras[lora]

    def _frame(self, value: object) -> str:
        return frame_of(value, self._folder, self._allowed)

    def _keyframes(self, value: object, num_frames: int | None) -> tuple[tuple[int, str], ...]:
        pairs = pairs_of(value)
        if num_frames is None:
            raise ValueError("their positions cannot be told without num_frames")
        frames: dict[int, str] = {}
        for position, path in pairs:
            place = whole_of(position)
            if not -num_frames <= place < num_frames:
                raise ValueError(
                    f"position {place} lies outside of {num_frames} frames: write 0 to "
                    f"{num_frames - 1}, or -1 for the last"
                )
            if place % num_frames in frames:
                raise ValueError(f"position {place % num_frames} has two images: leave one out")
            frames[place % num_frames] = self._frame(path)
        if set(frames) != {0, num_frames - 1} and not self._may_be_anywhere:
            raise ValueError(
                "set render.keyframes=any if the LoRA was trained for keyframes at "
                f"{sorted(frames)}; a first and a last frame go without"
            )
        return tuple(sorted(frames.items()))


def _check_defaults(defaults: RenderConfig) -> dict[str, Any]:
    filled: dict[str, Any] = {"lora": "", "tags": ""}
    problems = []
    for field in (*NUMBERS, "negative_prompt"):
        value = getattr(defaults, field)
        try:
            filled[field] = PARSERS[field](value)
        except ValueError as fault:
            problems.append(f"render.{field} is {value!r}: {fault}")
    if problems:
        raise ConfigError("; ".join(problems) + ".")
    return filled


def _check_columns(columns: Sequence[str], name: str) -> None:
    """Refuse a manifest without a needed column, or with one whose name is nearly a known one."""
    needed = ("id", "prompt") if "keyframes" in columns else REQUIRED
    missing = [column for column in needed if column not in columns]
    hints = []
    for column in columns:
        if column not in COLUMNS and len(column) <= MAX_COLUMN_LETTERS:
            free = [known for known in COLUMNS if known not in columns]
            near = difflib.get_close_matches(column.lower(), free, 1, SIMILAR_NAME)
            hints += [f"column {column!r} must be written {near[0]!r}"] if near else []
    if missing or hints:
        lacking = [f"it has no column {column!r}" for column in missing]
        raise BadInput(
            f"The manifest {name} cannot be read: {'; '.join([*lacking, *hints[:MAX_HINTS]])}; "
            f"needed are {', '.join(REQUIRED)}; {', '.join(COLUMNS[len(REQUIRED) :])} may be there."
        )

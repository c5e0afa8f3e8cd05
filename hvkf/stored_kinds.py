"""Every kind of object in a workspace, by its path: who writes and reads it, how it is checked.

The table is `assets/stored_kinds.csv`. `docs/formats.md` shows it, `hvkf verify` works it off, and
a damaged object's sentence says what the table says to do.
"""

import csv
import re
from pathlib import Path
from typing import Literal, NamedTuple, cast

TABLE = Path(__file__).parent / "assets" / "stored_kinds.csv"

Check = Literal["record", "hash", "table", "lines", "text", "none"]
Absence = Literal["journal", "named", "may go"]


class Kind(NamedTuple):
    """A kind of stored object.

    Attributes:
        name: What it is called, in the plural.
        pattern: Its paths: `*` is a name or a part of one, `**` more than one, `#` a number.
        what: What it is.
        writer: The commands that write it.
        reader: The commands that read it.
        check: How `hvkf verify` looks for damage: a record has its own checksum; a hash, a table
            and lines are compared with the sha256 in the record that names them.
        absence: What misses one that is gone: the journal, the record that names it, or nothing.
        fix: What to do when one does not read, as a main clause.
        why_it_may_go: Why nothing misses one; empty where something does.
    """

    name: str
    pattern: str
    what: str
    writer: str
    reader: str
    check: Check
    absence: Absence
    fix: str
    why_it_may_go: str


def _read_table() -> tuple[Kind, ...]:
    with TABLE.open(encoding="utf-8", newline="") as table:
        _, *rows = csv.reader(table)
    return tuple(
        Kind(
            *(name, pattern, what, writer, reader),
            check=cast(Check, check),
            absence=cast(Absence, absence),
            fix=fix,
            why_it_may_go=why,
        )
        for name, pattern, what, writer, reader, check, absence, fix, why in rows
    )


KINDS = _read_table()
RESTORE = "restore it from a backup"
ROOTS = tuple(dict.fromkeys(kind.pattern.split("/")[0] for kind in KINDS if "/" in kind.pattern))


def _expression(pattern: str) -> re.Pattern[str]:
    parts = {"**": ".+", "*": "[^/]+", "#": r"\d{6,}"}
    pieces = re.split(r"(\*\*|\*|#)", pattern)
    return re.compile("".join(parts.get(piece) or re.escape(piece) for piece in pieces))


_EXPRESSIONS = [(_expression(kind.pattern), kind) for kind in KINDS]


def kind_of(path: str) -> Kind | None:
    """Tell what kind of object lies at a path of the workspace; None for a foreign one."""
    if path.rpartition("/")[2].startswith("."):  # such as .DS_Store
        return None
    return next((kind for expression, kind in _EXPRESSIONS if expression.fullmatch(path)), None)


def fix_of(path: str) -> str:
    """Say what to do when the object at a path does not read, as a main clause."""
    kind = kind_of(path)
    return RESTORE if kind is None else kind.fix

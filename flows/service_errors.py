"""Errors of the services of Prefect's server, found in its log: nothing else tells of them.

A service that fails (schedules, automations, late runs) leaves the pages green. It is told when it
has failed three times in the same way: a database that is locked for a moment is no matter.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

RECORD = re.compile(
    r"^\d\d:\d\d:\d\d\.\d+ \| (?P<level>\w+) +\| (?P<logger>\S+) - (?P<message>.*)$"
)
LOGGERS = ("docket.", "prefect.server.")
LEVELS = ("ERROR", "CRITICAL")
CALL = re.compile(r"(\w+)\(")
TOLD_AFTER = 3
MAX_SHOWN = 300


class ServiceErrors:
    """Reads a server's log as it grows."""

    def __init__(self, log_file: Path) -> None:
        self._log_file = log_file
        self._read_bytes = 0
        self._block: list[str] = []
        self._seen: Counter[tuple[str, str]] = Counter()

    def new(self) -> list[str]:
        """Return a sentence for each service that has now failed often enough to be told."""
        sentences = []
        for block in self._new_blocks():
            if (error := _error_of(block)) is None:
                continue
            self._seen[error] += 1
            if self._seen[error] == TOLD_AFTER:
                service, words = error
                sentences.append(
                    f"A service of Prefect's server fails again and again ({service}: "
                    f"{words[:MAX_SHOWN]}): what it does is not done; see {self._log_file}."
                )
        return sentences

    def _new_blocks(self) -> Iterator[list[str]]:
        """Yield the complete records since the last call: their first line, and what is below."""
        with self._log_file.open("rb") as log:
            log.seek(self._read_bytes)
            added = log.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if RECORD.match(line) and self._block:
                yield self._block
                self._block = []
            self._block.append(line)
        if not added and self._block:  # nothing more is coming for it
            yield self._block
            self._block = []


def _error_of(block: list[str]) -> tuple[str, str] | None:
    """Return the service and the last words of a record that is a service's error."""
    record = RECORD.match(block[0])
    if record is None or record["level"] not in LEVELS:
        return None
    if not record["logger"].startswith(LOGGERS):
        return None
    call = CALL.search(record["message"])
    service = call[1] if call else record["logger"].rpartition(".")[2]
    return service, _exception_of(block) or record["message"]


def _exception_of(block: list[str]) -> str:
    """Return the first line of the last traceback's exception; those below explain it."""
    found, in_traceback = "", False
    for line in block:
        if line.startswith("Traceback "):
            in_traceback = True
        elif in_traceback and line and not line[0].isspace():
            found, in_traceback = line, False
    return found

"""What the pods of a job say: passed on, kept for the end, and missed when nothing comes."""

import time
from collections import deque

from hvkf.jobs.spec import ERROR_PREFIX, Listener

MAX_LINES = 2000
KEPT_LINES = 2000
SHOWN_LINES = 5


class PodLog:
    """The log of one pod: its newest lines, and since when it is silent."""

    def __init__(self) -> None:
        self.error: str | None = None
        self.has_ended = False
        self._newest: deque[str] = deque(maxlen=KEPT_LINES)
        self._withheld: deque[str] = deque(maxlen=KEPT_LINES)
        self._num_shown = 0
        self._word_s = time.monotonic()
        self._lost_s: float | None = None

    def hear_progress(self) -> None:
        """Take note that the pod lives."""
        self._word_s = time.monotonic()

    def hear(self, line: str, listener: Listener) -> None:
        """Take a line, and pass it on while there are not too many."""
        self._word_s = time.monotonic()
        self._newest.append(line)
        if line.startswith(ERROR_PREFIX):
            self.error = line.removeprefix(ERROR_PREFIX)
        elif self._num_shown < MAX_LINES:
            self._num_shown += 1
            listener.on_log(line)
        else:
            self._withheld.append(line)

    def lose(self) -> None:
        """Take note that nothing is heard because the connection is lost."""
        if self._lost_s is None:
            self._lost_s = time.monotonic()

    def open(self) -> None:
        """Take note that it is heard again; the time between does not count as silence."""
        if self._lost_s is not None:
            self._word_s += time.monotonic() - self._lost_s
            self._lost_s = None

    def end(self) -> None:
        """Take note of the end: of the log, or of reading it."""
        self.has_ended = True

    def silence_s(self) -> float:
        """Return for how long the pod has said nothing; a log that is not read says nothing."""
        if self.has_ended or self._lost_s is not None:
            return 0.0
        return time.monotonic() - self._word_s

    def last_words(self) -> str:
        """Return its fault in its own words, or its last lines."""
        return self.error or " | ".join(list(self._newest)[-SHOWN_LINES:])

    def show_withheld(self, listener: Listener) -> None:
        """Pass on the newest of the lines that were too many."""
        while self._withheld:
            listener.on_log(self._withheld.popleft())

"""A workspace whose process is killed at a chosen write."""

from pathlib import Path

from hvkf.storage import FolderStore


class Killed(BaseException):
    """Ends the work at once, as kill -9 does: no handler of the product catches it."""


class KilledStore(FolderStore):
    """Dies at the n-th write, counted from 0: before it is made, or just after."""

    def __init__(self, root: Path, at: int, *, after: bool) -> None:
        super().__init__(root)
        self.remaining = at
        self.after = after

    def _die(self, now: bool) -> None:
        if now and self.remaining == 0:
            raise Killed

    def put_new(self, path: str, data: bytes) -> None:
        self._die(not self.after)
        super().put_new(path, data)
        self._die(self.after)
        self.remaining -= 1

    def put(self, path: str, data: bytes) -> None:
        self._die(not self.after)
        super().put(path, data)
        self._die(self.after)
        self.remaining -= 1


def tree(root: Path, *folders: str) -> dict[str, bytes]:
    """Read all files below some folders of a workspace."""
    return {
        str(file.relative_to(root)): file.read_bytes()
        for folder in folders
        for file in sorted((root / folder).rglob("*"))
        if file.is_file()
    }


def differing(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """Name the files that are not alike in two trees: their bytes would fill the screen."""
    return [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]

"""The objects of a small cluster: what they are now, and a journal for those who watch."""

import asyncio
import copy
import random
import string
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

Object = dict[str, Any]
KINDS = {"jobs": "Job", "pods": "Pod", "events": "Event"}
FIRST_VERSION = 1000


class Entry(NamedTuple):
    """One thing that happened to one object."""

    version: int
    kind: str
    action: str
    object: Object


class Taken(Exception):
    """There is an object of that name."""


class Objects:
    """Jobs, pods and events of one namespace; used by one thread, that of its event loop.

    `forgotten` is the newest version that watches can no longer go on from.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.journal: list[Entry] = []
        self.version = FIRST_VERSION
        self.forgotten = 0
        self.listeners: list[Callable[[Entry], None]] = []
        self._now = now
        self._live: dict[tuple[str, str], Object] = {}
        self._changed = asyncio.Event()

    def time(self) -> str:
        """Write this moment; a real server writes whole seconds, which are long in a fast test."""
        return datetime.fromtimestamp(self._now(), UTC).isoformat()

    def get(self, kind: str, name: str) -> Object | None:
        """Return an object as it is, not to be changed; None when there is none."""
        return self._live.get((kind, name))

    def all(self, kind: str) -> list[Object]:
        """Return the objects of a kind, the oldest first; not to be changed."""
        return [found for (its_kind, _), found in self._live.items() if its_kind == kind]

    def create(self, kind: str, made: Object) -> Object:
        """Add an object; it is given what a server gives.

        Raises:
            Taken: its name is.
        """
        metadata = made["metadata"]
        if (kind, metadata["name"]) in self._live:
            raise Taken(metadata["name"])
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", self.time())
        self._live[kind, metadata["name"]] = made
        self._write(kind, "ADDED", made)
        return made

    def change(self, kind: str, name: str, mutate: Callable[[Object], None]) -> Object:
        """Change an object, if it does change, and return it."""
        changed = copy.deepcopy(self._live[kind, name])
        mutate(changed)
        if changed == self._live[kind, name]:
            return changed
        self._live[kind, name] = changed
        self._write(kind, "MODIFIED", changed)
        return changed

    def remove(self, kind: str, name: str) -> None:
        """Take an object away."""
        self._write(kind, "DELETED", copy.deepcopy(self._live.pop((kind, name))))

    def since(self, kind: str, version: int) -> list[Entry]:
        """Return what happened to objects of a kind behind a version."""
        found = []
        for entry in reversed(self.journal):
            if entry.version <= version:
                break
            if entry.kind == kind:
                found.append(entry)
        return found[::-1]

    async def wait(self, limit_s: float) -> None:
        """Wait for the next change, for so long at most."""
        try:
            await asyncio.wait_for(self._changed.wait(), limit_s)
        except TimeoutError:
            return

    def tell(self, about: Object, kind: str, reason: str, message: str) -> None:
        """Write an event about an object; `kind` is Normal or Warning."""
        metadata = about["metadata"]
        name = f"{metadata['name']}.{uuid.uuid4().hex[:16]}"
        involved = {"kind": about["kind"], "name": metadata["name"], "uid": metadata["uid"]}
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": {**involved, "namespace": metadata["namespace"]},
            "reason": reason,
            "message": message,
            "type": kind,
        }
        self.create("events", event)

    def _write(self, kind: str, action: str, seen: Object) -> None:
        self.version += 1
        seen["metadata"]["resourceVersion"] = str(self.version)
        entry = Entry(self.version, kind, action, copy.deepcopy(seen))
        self.journal.append(entry)
        self._changed.set()
        self._changed = asyncio.Event()
        for listener in self.listeners:
            listener(entry)


def random_suffix() -> str:
    """Write five letters as those behind a pod's name."""
    return "".join(random.choices(string.ascii_lowercase + string.digits, k=5))


def condition(of: Object, kind: str) -> Object | None:
    """Return a condition of an object."""
    for found in of.get("status", {}).get("conditions") or ():
        if found["type"] == kind:
            assert isinstance(found, dict)
            return found
    return None


def set_condition(of: Object, kind: str, status: str, **more: str) -> None:
    """Set a condition of an object."""
    conditions = of["status"].setdefault("conditions", [])
    made = {"type": kind, "status": status, **more}
    for place, found in enumerate(conditions):
        if found["type"] == kind:
            conditions[place] = made
            return
    conditions.append(made)

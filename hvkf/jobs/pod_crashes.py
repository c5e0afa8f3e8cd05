"""How pods' workers crashed, noted by the waiting task as the local executor does for processes.

A crash counts as a try of the row that its worker rendered alone; an eviction, a lost node or a
kill counts for the worker. See `hvkf.crashes`.
"""

from hvkf.crashes import note_crash
from hvkf.errors import HvkfError
from hvkf.jobs.cluster_state import crash_of_pod
from hvkf.jobs.manifest import Manifest
from hvkf.jobs.spec import Listener
from hvkf.storage import Store


class CrashNotes:
    """Notes each crash once, under the pod's name, which its worker knows as its own."""

    def __init__(self, store: Store, listener: Listener) -> None:
        self._store = store
        self._listener = listener
        self._noted: set[str] = set()

    def look(self, pod: Manifest) -> None:
        """Note that a pod's worker crashed, if it did; a store that is away ends no waiting."""
        name = pod["metadata"]["name"]
        how = crash_of_pod(pod)
        if how is None or name in self._noted:
            return
        try:
            note_crash(self._store, name, how)
        except (HvkfError, OSError) as error:  # tried again when the pod is seen again
            self._listener.on_log(f"The end of worker {name} could not be noted: {error}")
            return
        self._noted.add(name)
        self._listener.on_log(f"worker {name} crashed: {how}")

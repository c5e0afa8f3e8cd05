"""Rows that failed, tried again: finding them, and forgetting that they failed."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from hvkf.journal import delete_record
from hvkf.records import Failure
from hvkf.stages.render_claims import forget_claims
from hvkf.stages.render_records import LEDGER, RenderRecord, record_path
from hvkf.stages.render_tasks import PlannedRows
from hvkf.storage import Store
from hvkf.stored import read_record

NUM_READERS = 32


def failed_rows(store: Store, planned: PlannedRows) -> dict[str, Failure]:
    """Read which of a manifest's rows were given up, and why, by their identities.

    Rows whose images cannot be used have no identity: once the images are mended, they are new.
    """
    there = set(store.list(LEDGER))
    identities = dict.fromkeys(planned.table["identity"].to_pylist())
    recorded = [name for name in identities if name and record_path(name) in there]

    def failure_of(identity: str) -> Failure | None:
        return read_record(store, record_path(identity), RenderRecord).failure

    with ThreadPoolExecutor(NUM_READERS) as readers:
        found = zip(recorded, readers.map(failure_of, recorded), strict=True)
        return {identity: failure for identity, failure in found if failure is not None}


def forget_failures(store: Store, root: str, identities: Iterable[str]) -> None:
    """Let rows be tried again, from no try on; killed amid, it is done again by the same command.

    Args:
        store: The workspace.
        root: The manifest's folder; it counts as unfinished from now on.
        identities: Rows whose records hold a failure.
    """
    delete_record(store, f"{root}/record.json")
    for identity in identities:
        # The record goes last: a row without it and with three tries would be set aside again.
        forget_claims(store, identity)
        store.delete(record_path(identity))

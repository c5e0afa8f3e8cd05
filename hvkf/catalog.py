"""The catalog: the clips of a data set as a Parquet table, and the newest one of a data set."""

import io
from collections.abc import Sequence

from hvkf.errors import BadInput
from hvkf.ledger import latest_commit
from hvkf.records import CatalogCommit, Clip, Record
from hvkf.storage import Store, object_sha256
from hvkf.stored import explain_absence, open_parquet


def commits_folder(dataset: str) -> str:
    """Where the commits of a data set's catalogs lie."""
    return f"datasets/{dataset}/commits"


def newest_catalog(store: Store, dataset: str) -> CatalogCommit:
    """Read the newest commit of a data set's catalog.

    Raises:
        BadInput: the data set was never ingested into this workspace.
    """
    commit = latest_commit(store, commits_folder(dataset), CatalogCommit)
    if commit is None:
        raise BadInput(
            f"The workspace {store.url} has no data set {dataset!r}: run `hvkf ingest` first, or "
            "set ingest.dataset to one that is there."
        )
    return commit


def to_parquet(rows: Sequence[Record]) -> bytes:
    """Encode records of one kind as a Parquet table; equal records give equal bytes."""
    # Here: Arrow takes half a second to load, which no command's --help should wait for.
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    table = pa.Table.from_pylist([row.model_dump(mode="json") for row in rows])
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def hash_catalog(store: Store, path: str) -> str:
    """Hash a catalog, for the commit that names it.

    Raises:
        CorruptData: it is gone.
    """
    with explain_absence(store, path):
        return object_sha256(store, path)


def read_clips(store: Store, path: str) -> list[Clip]:
    """Read a catalog's clips, in order.

    Raises:
        CorruptData: the catalog is gone although a commit names it, or does not read.
    """
    with explain_absence(store, path), open_parquet(store, path) as file:
        return [Clip.model_validate(row) for row in file.read(use_threads=False).to_pylist()]

"""A manifest that cannot be rendered: all errors of its rows at once, and as a CSV beside it."""

from collections.abc import Mapping, Sequence

from hvkf.config import Config
from hvkf.errors import HvkfError
from hvkf.keyframe_images import ImageFault
from hvkf.manifest import ManifestRow, images_of_rows, split_location
from hvkf.manifest_errors import ManifestError, RowError, RowImages, as_csv
from hvkf.records import digest
from hvkf.shown import shown
from hvkf.stages.render_images import ImageFacts, folders_of, image_facts
from hvkf.storage import Store, open_folder

FoundImages = Mapping[str, ImageFacts | ImageFault]
CSV_ENDING = ".errors.csv"
ELSEWHERE = "manifests/errors"


def with_image_errors(error: ManifestError, config: Config, store: Store) -> ManifestError:
    """Add what is wrong with the images of all rows, and write all errors beside the manifest."""
    rows = list(images_of_rows(config.render))
    paths = {path for row in rows for _, path in row.images}
    found = image_facts(folders_of(config.render, store), paths)
    errors = [*error.errors, *(told for row in rows for told in _errors_of(row, found))]
    return kept(error.told(errors), store)


def image_errors(row: ManifestRow, found: FoundImages) -> list[RowError]:
    """List what is wrong with a row's images."""
    if row.keyframes:
        images = [("keyframes", path) for _, path in row.keyframes]
    else:
        images = [("first_frame", row.first_frame), ("last_frame", row.last_frame)]
    return _errors_of(RowImages(row.row, row.id, tuple(images)), found)


def _errors_of(row: RowImages, found: FoundImages) -> list[RowError]:
    return [
        RowError(row.row, row.id, field, shown(path), str(facts))
        for field, path in row.images
        for facts in [found[path]]
        if isinstance(facts, ImageFault)
    ]


def kept(error: ManifestError, store: Store) -> ManifestError:
    """Write the errors as a CSV beside the manifest, and let the error say where it lies.

    Where nothing can be written beside the manifest, it lies in the workspace.
    """
    folder, name = split_location(error.name)
    data = as_csv(error.errors)
    try:
        beside = open_folder(folder)
        beside.put(f"{name}{CSV_ENDING}", data)
        place = f"{beside.url}/{name}{CSV_ENDING}"
    except (HvkfError, OSError):
        path = f"{ELSEWHERE}/{digest(error.name)}{CSV_ENDING}"
        store.put(path, data)
        place = f"{store.url}/{path}"
    return error.told(error.errors, f"{error.note + ' ' if error.note else ''}All of them: {place}")


def refusal_of(
    config: Config, errors: Sequence[RowError], num_rows: int, store: Store
) -> ManifestError | None:
    """Give the error of a manifest of which too many rows have images that cannot be used."""
    limit = config.render.max_failed_fraction
    name = config.render.manifest
    num_failed = len({error.row for error in errors})
    if name is None or num_failed <= limit * num_rows:
        return None
    note = f"render.max_failed_fraction={limit:g} allows fewer."
    return kept(ManifestError(name, errors, num_rows, note), store)

"""The registry: which LoRA is in use under a name, who or what decided that, and on which figures.

`registry/<name>.json` holds a name's whole history, oldest first; its last version is in use.
`registry/loras/<sha256>/` keeps each promoted LoRA with its model card, where neither `hvkf gc` nor
the pruning of checkpoints takes it away. A change is one conditional put: of two at once one wins.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from hvkf.code_version import code_version
from hvkf.errors import AlreadyExists, BadInput, CorruptData, TryAgain
from hvkf.journal import note_completed
from hvkf.records import FORMAT_VERSION, FileEntry, Record
from hvkf.storage import Store, object_sha256
from hvkf.stored import decode_record, read_record
from hvkf.stored_kinds import fix_of

FOLDER = "registry"
LORAS = f"{FOLDER}/loras"
LORA_FILE_NAME = "pytorch_lora_weights.safetensors"
CARD_NAME = "README.md"
SAMPLES_NAME = "samples.jpg"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class OutOfDate(TryAgain):
    """Another version came into use while something was decided about the one before."""


class Candidate(Record):
    """A LoRA that may be promoted, and all that its promotion is to be remembered by.

    Attributes:
        lora_sha256: Of the LoRA's file.
        origin: How it was named: run:RUN_ID/step-00000500, or a path.
        run_id: The training run that made it, if it was one of the workspace.
        checkpoint: Which of the run's checkpoints.
        decided_by: `gate`, or a person.
        figures: What was measured, by name.
        data_digest: Of all the bytes it was trained on.
        config_digest: Of the settings it was trained with.
        evaluation: Path of the metrics that the decision rests on.
        decision: Path of the gate's decision record.
        files: Of its model card and its run, beside the LoRA's file; older versions lack them.
        note: For people.
    """

    lora_sha256: str
    origin: str
    run_id: str | None = None
    checkpoint: str | None = None
    decided_by: str
    figures: dict[str, float] = Field(default_factory=dict)
    data_digest: str | None = None
    config_digest: str | None = None
    evaluation: str | None = None
    decision: str | None = None
    files: tuple[FileEntry, ...] = ()
    note: str = ""


class Version(Candidate):
    """One entry of a name's history. `restores` is the version that a roll-back went back to."""

    version: int
    decided_at: str
    code_version: str
    restores: int | None = None

    @property
    def lora(self) -> str:
        """Where its LoRA lies in the workspace."""
        return lora_path(self.lora_sha256)

    @property
    def content_of(self) -> int:
        """The version that first brought this LoRA."""
        return self.restores or self.version


class Registered(Record):
    """The history of a name, oldest first; the last version is in use."""

    format_version: int = FORMAT_VERSION
    name: str
    history: Annotated[tuple[Version, ...], Field(min_length=1)]

    @property
    def in_use(self) -> Version:
        """The version that rendering by this name takes."""
        return self.history[-1]


def registry_path(name: str) -> str:
    """Where a name's history lies.

    Raises:
        BadInput: it is no name.
    """
    if not NAME.fullmatch(name):
        raise BadInput(
            f"{name!r} cannot be a registry's name: use letters, digits, dots, dashes and "
            "underscores, a letter or digit first."
        )
    return f"{FOLDER}/{name}.json"


def lora_folder(sha256: str) -> str:
    """Where a promoted LoRA and its model card lie."""
    return f"{LORAS}/{sha256}"


def lora_path(sha256: str) -> str:
    """Where the file of a promoted LoRA lies."""
    return f"{lora_folder(sha256)}/{LORA_FILE_NAME}"


def names(store: Store) -> list[str]:
    """List the names that something was promoted under."""
    paths = (path.removeprefix(f"{FOLDER}/") for path in store.list(FOLDER))
    named = [path.removesuffix(".json") for path in paths if path.endswith(".json")]
    return [name for name in named if NAME.fullmatch(name)]


def find_registered(store: Store, name: str) -> Registered | None:
    """Read a name's history; None when nothing was promoted under it."""
    try:
        return read_record(store, registry_path(name), Registered)
    except FileNotFoundError:
        return None


def read_registered(store: Store, name: str) -> Registered:
    """Read a name's history.

    Raises:
        BadInput: nothing was promoted under it; the names that there are are listed.
    """
    found = find_registered(store, name)
    if found is None:
        there = ", ".join(names(store)) or "none yet"
        raise BadInput(
            f"Nothing is registered as {name!r} in {store.url} (there: {there}): promote a LoRA "
            f"with `hvkf registry promote {name} --lora run:RUN_ID`, or name another."
        )
    return found


def pick_version(registered: Registered, number: int | None = None) -> Version:
    """Choose a version of a history: the one in use, or the one of that number.

    Raises:
        BadInput: there is no such version.
    """
    if number is None:
        return registered.in_use
    for version in registered.history:
        if version.version == number:
            return version
    raise BadInput(
        f"{registered.name!r} has no version {number}, but 1 to {registered.in_use.version}."
    )


def check_lora(store: Store, name: str, version: Version) -> str:
    """Hash the LoRA of a version anew; return its path.

    Raises:
        CorruptData: it is gone, or its bytes are others.
    """
    which = f"The LoRA of {name!r} version {version.version}"
    fix = (
        f"restore {store.url}/{version.lora}, or roll back with `hvkf registry rollback {name}`, "
        "which checks what it goes back to."
    )
    try:
        found = object_sha256(store, version.lora)
    except FileNotFoundError:
        raise CorruptData(f"{which} is gone: {fix}") from None
    if found != version.lora_sha256:
        raise CorruptData(
            f"{which} has the sha256 {found} where {version.lora_sha256} was promoted: {fix}"
        )
    return version.lora


def keep_lora(store: Store, file: Path, sha256: str) -> str:
    """Copy a LoRA to where it outlives its run's checkpoints; return the path.

    Raises:
        CorruptData: the copy has other bytes.
    """
    path = lora_path(sha256)
    if not store.exists(path) or object_sha256(store, path) != sha256:
        store.upload(file, path)
        if object_sha256(store, path) != sha256:
            raise CorruptData(f"{file} changed while it was copied to {store.url}/{path}.")
    return path


def promote(
    store: Store,
    name: str,
    candidate: Candidate,
    *,
    over: int,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Version:
    """Put a LoRA into use under a name; its file was kept before.

    The same decision again (the same LoRA on the same evaluation) returns the version it made.

    Args:
        store: The workspace.
        name: The registry's name.
        candidate: What is promoted, and why.
        over: The version that was in use when this was decided; 0 for none.
        now: The time, for tests.

    Raises:
        OutOfDate: meanwhile another version came into use.
        CorruptData: the LoRA's file is gone or has other bytes.
    """
    found = find_registered(store, name)
    if found is not None and found.in_use.version > over and _is_same(found.in_use, candidate):
        return found.in_use
    in_use = 0 if found is None else found.in_use.version
    if in_use != over:
        raise _out_of_date(name, over, in_use)
    version = Version.model_validate(
        {
            **candidate.model_dump(),
            "version": over + 1,
            "decided_at": now().isoformat(timespec="seconds"),
            "code_version": code_version(),
        }
    )
    check_lora(store, name, version)
    return _append(store, name, found, version)


def rollback(
    store: Store, name: str, *, to: int | None = None, decided_by: str, note: str = ""
) -> Version:
    """Put an earlier version's LoRA into use again, as a new version that says so.

    Args:
        store: The workspace.
        name: The registry's name.
        to: Which version; left out, the one that was in use before the present LoRA.
        decided_by: Who asked for it.
        note: Why.

    Raises:
        BadInput: there is nothing to go back to, or it is in use.
        CorruptData: the LoRA to go back to is gone or has other bytes.
        OutOfDate: meanwhile another version came into use.
    """
    found = read_registered(store, name)
    present = found.in_use
    if to is None:
        earlier = [
            version
            for version in found.history
            if version.version < present.content_of and version.lora_sha256 != present.lora_sha256
        ]
        if not earlier:
            raise BadInput(f"{name!r} has no version before {present.content_of} to go back to.")
        wanted = earlier[-1]
    else:
        wanted = pick_version(found, to)
    if wanted.lora_sha256 == present.lora_sha256:
        raise BadInput(f"{name!r} uses the LoRA of version {wanted.version} already.")
    check_lora(store, name, wanted)
    version = wanted.model_copy(
        update={
            "version": present.version + 1,
            "restores": wanted.content_of,
            "decided_by": decided_by,
            "decided_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "code_version": code_version(),
            "note": note,
        }
    )
    return _append(store, name, found, version)


def _is_same(version: Version, candidate: Candidate) -> bool:
    return (version.lora_sha256, version.evaluation, version.restores) == (
        candidate.lora_sha256,
        candidate.evaluation,
        None,
    )


def _append(store: Store, name: str, found: Registered | None, version: Version) -> Version:
    """Make a version the newest, unless another came first."""
    path = registry_path(name)
    history = () if found is None else found.history
    changed = Registered(name=name, history=(*history, version)).to_json()
    try:
        store.put_if(path, changed, None if found is None else _bytes_of(store, found))
    except AlreadyExists:
        # The answer to an earlier try of this very put may have been lost.
        if store.read(path) != changed:
            latest = read_registered(store, name).in_use.version
            raise _out_of_date(name, version.version - 1, latest) from None
    note_completed(store, path)
    return version


def _bytes_of(store: Store, found: Registered) -> bytes:
    """Read the bytes that hold this history: an earlier hvkf wrote equal ones in another way."""
    path = registry_path(found.name)
    data = store.read(path)
    fix = fix_of(path)
    return data if decode_record(data, path, Registered, fix) == found else found.to_json()


def _out_of_date(name: str, over: int, in_use: int) -> OutOfDate:
    return OutOfDate(
        f"{name!r} went from version {over} to {in_use} while this was decided, so it was not "
        "changed: decide anew against what is in use now (`hvkf registry show`, or evaluate again)."
    )


def kept_files(store: Store) -> Iterable[tuple[str, FileEntry]]:
    """Yield the folder and file of every LoRA that a history names, each once."""
    kept = {v.lora_sha256 for name in names(store) for v in read_registered(store, name).history}
    for sha256 in sorted(kept):
        # The size is not part of what is checked: the hash says more.
        yield lora_folder(sha256), FileEntry(name=LORA_FILE_NAME, sha256=sha256, size=0)


def unused_loras(store: Store) -> list[str]:
    """List what was kept for promotions that never came about."""
    used = {folder for folder, _ in kept_files(store)}
    return [path for path in store.list(LORAS) if path.rpartition("/")[0] not in used]


def differences(
    before: Mapping[str, object], after: Mapping[str, object]
) -> dict[str, tuple[object, object]]:
    """Compare two flat mappings: name to (before, after), None where it is missing."""
    return {
        key: (before.get(key), after.get(key))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    }

"""What is used of scenes and latents: by newest commits, and by plans that are not committed."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

from hvkf.ledger_paths import NUMBERED, number_of
from hvkf.records import DatasetCommit, Plan, SegmentRecord, plan_path
from hvkf.storage import Store
from hvkf.stored import read_record
from hvkf.uses import open_plans

RECORD_NAME = re.compile(r"[^./][^/]*\.json")
SHARD_FOLDER = re.compile(r"[^./][^/]*-[0-9a-f]+(-[0-9]+)?")
SHARD_NAME = re.compile(r"index\.json|shard\.[0-9]+\.mds(\.[a-z0-9]+)?")

Segment = tuple[str, str]
"""The root that a segment lies in, such as scenes/<stage version>, and its id."""


class Objects:
    """The objects of scenes/ or latents/, told apart by their paths.

    `commits` are the paths of each data set's commits, oldest first, by their folder.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self.commits: dict[str, list[str]] = {}
        self.records: list[str] = []
        self.shards: dict[str, list[str]] = {}
        self.foreign: list[str] = []
        for path in paths:
            self._put(path)
        for of_dataset in self.commits.values():
            of_dataset.sort(key=number_of)

    def _put(self, path: str) -> None:
        _, *folders, name = path.split("/")
        folder = path.rpartition("/")[0]
        if len(folders) >= 3 and folders[1] == "commits" and NUMBERED.fullmatch(name):
            self.commits.setdefault(folder, []).append(path)
        elif len(folders) == 2 and folders[1] == "ledger" and RECORD_NAME.fullmatch(name):
            self.records.append(path)
        elif (
            len(folders) == 3
            and folders[1] not in ("commits", "ledger")
            and SHARD_FOLDER.fullmatch(folders[2])
            and SHARD_NAME.fullmatch(name)
        ):
            self.shards.setdefault(folder, []).append(path)
        else:
            self.foreign.append(path)


def foreign_records(store: Store) -> Iterator[str]:
    """Yield files that lie among records of other kinds than segments, and are none."""
    for path in store.list("registry"):
        folder, _, name = path.rpartition("/")
        if folder == "registry" and not RECORD_NAME.fullmatch(name):
            yield path
    for kind, depth in (("datasets", 4), ("nightly", 3), ("gc", 2)):
        for path in store.list(kind):
            *folders, name = path.split("/")
            is_record = len(folders) == depth - 1 and NUMBERED.fullmatch(name)
            if name.startswith(".") or not (is_record or folders[-1] not in (kind, "commits")):
                yield path


def root_of(folder: str) -> str:
    """Tell where the segments lie that the commits in a folder list."""
    return folder.partition("/commits/")[0]


def segments_of(store: Store, commit_path: str) -> set[Segment]:
    """List the segments of a commit."""
    commit = read_record(store, commit_path, DatasetCommit)
    return {(root_of(commit_path), segment) for segment in commit.segments}


def used_segments(
    store: Store, commits: Mapping[str, list[str]], plans: Iterable[Plan], young_s: float
) -> set[Segment]:
    """List the segments that newest commits and plans name.

    Args:
        store: The workspace.
        commits: Each data set's commits, oldest first, by their folder.
        plans: Those that are not committed.
        young_s: Commits that were replaced after this time (seconds since 1970) still count.
    """
    used: set[Segment] = set()
    plans = list(plans)
    for paths in commits.values():
        used |= segments_of(store, paths[-1])
        for earlier, later in pairwise(paths):
            if store.stat(later).modified_s > young_s:
                used |= segments_of(store, earlier)
    for plan in plans:
        used |= _segments_of_plan(plan)
        if plan.stage == "cache":  # it commits on top of this one, if no other comes in between
            folder = f"{plan.inputs['root']}/commits/{plan.inputs['dataset']}"
            for path in commits.get(folder, []):
                if number_of(path) == plan.inputs["number"] - 1:
                    used |= segments_of(store, path)
    return used


def _segments_of_plan(plan: Plan) -> set[Segment]:
    """List the segments that a plan makes or reads."""
    inputs, found = plan.inputs, set()
    for output in (output for part in plan.parts for output in part.outputs):
        root, is_segment, name = output.rpartition("/ledger/")
        if is_segment and plan.stage in ("cache", "encode"):
            found.add((root, name.removesuffix(".json")))
    if plan.stage == "encode":
        found |= {(inputs["scenes"], segment) for segment in inputs["segments"]}
    elif plan.stage == "train" and inputs["sources"]["kind"] == "segments":
        sources = inputs["sources"]
        found |= {(sources["root"], segment) for segment in sources["segments"]}
    elif plan.stage == "evaluate":
        work = inputs["evaluation"]
        found |= {(work["scenes"], pair["segment"]) for pair in work["pairs"]}
    return found


def read_open_plans(store: Store, now_s: float) -> list[Plan]:
    """Read the plans that are not committed; one whose file is gone was given up."""
    found = []
    for use in open_plans(store, now_s):
        try:
            found.append(read_record(store, plan_path(use.stage, use.digest), Plan))
        except FileNotFoundError:
            continue
    return found


class Unused(NamedTuple):
    """A folder of shards that nothing uses, its segment where one is recorded, and its files."""

    segment: Segment | None
    paths: list[str]


def unused_shards(store: Store, objects: Objects, used: set[Segment]) -> list[Unused]:
    """List the folders of shards that nothing uses, each with its segment's record."""
    kept = set()
    unused = {prefix: Unused(None, list(paths)) for prefix, paths in objects.shards.items()}
    for path in objects.records:
        record = read_record(store, path, SegmentRecord)
        segment = (path.rpartition("/ledger/")[0], record.segment_id)
        if segment in used:
            kept.add(record.prefix)
        elif record.files:  # one without is what is left of a deleted segment
            shards = unused.get(record.prefix, Unused(None, [])).paths
            unused[record.prefix] = Unused(segment, [*shards, path])
    return [found for prefix, found in unused.items() if prefix not in kept]

"""Which source videos are held out for evaluation: by their content, once and for ever."""

import hashlib
from collections.abc import Mapping

from hvkf.near_duplicates import groups
from hvkf.settings.data import IngestConfig

TRAIN, HOLDOUT = "train", "holdout"


def decide_splits(
    hashes: Mapping[str, str], known: Mapping[str, str], config: IngestConfig
) -> tuple[dict[str, str], set[str]]:
    """Hold out a share of the sources; what was decided for a source once stays.

    The decision depends on the content alone, so it is the same whenever a video comes. What shows
    the same as a decided source follows it; of new sources that show the same, the first by its
    position decides for all.

    Args:
        hashes: sha256 of each source to its perceptual hash, or to nothing.
        known: sha256 to what was decided before, also of sources that are gone.
        config: How many to hold out.

    Returns:
        sha256 to the decision; and the new sources that show the same as a training video and as a
        held-out one: whatever side they took, evaluation would look at what was trained on.
    """
    splits = dict(known)
    between: set[str] = set()
    undecided: list[list[str]] = []
    for group in groups(hashes, hashes.keys() - known.keys()):
        new = [source for source in group if source not in known]
        sides = {known[source] for source in group if source in known}
        if not sides:
            undecided.append(sorted(new, key=_position))
        elif len(sides) == 1:
            splits |= dict.fromkeys(new, *sides)
        else:
            between.update(new)
    undecided.sort(key=lambda group: _position(group[0]))
    for group in undecided:
        is_held_out = _position(group[0]) < config.holdout_fraction
        splits |= dict.fromkeys(group, HOLDOUT if is_held_out else TRAIN)
    lacking = config.min_holdout - sum(splits.get(source) == HOLDOUT for source in hashes)
    for group in undecided:
        if lacking > 0 and splits[group[0]] == TRAIN:
            splits |= dict.fromkeys(group, HOLDOUT)
            lacking -= len(group)
    return splits, between


def _position(source: str) -> float:
    """Where in [0, 1) a source lies by its content."""
    return int(hashlib.sha256(source.encode()).hexdigest()[:8], 16) / 2**32

"""Which samples make up each training step: pure, so that it can be replayed from any step.

A step's global batch depends on the seed, the epoch and the items, never on how many ranks share
it; all of a step's samples are of one bucket. Order comes from hashing item keys, so that it is the
same wherever it is computed and a new item does not reshuffle the others.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from hvkf.seeds import seed_for


class GlobalBatch(NamedTuple):
    """The samples of one optimizer step, over all ranks and accumulated micro-batches."""

    bucket: str
    keys: tuple[str, ...]


class MicroBatch(NamedTuple):
    """What one rank computes at once.

    A rank that the last samples of a bucket do not reach borrows one that another rank trains:
    every rank joins every collective, and a borrowed sample's loss has no weight.
    """

    keys: tuple[str, ...]
    borrowed: bool


def epoch_batches(
    items: Mapping[str, Sequence[str]],
    *,
    seed: int,
    epoch: int,
    global_batch_size: int,
    drop_last: bool = False,
    shuffle: bool = True,
) -> list[GlobalBatch]:
    """Compose an epoch's steps: each item once, none dropped unless `drop_last`, none repeated.

    Args:
        items: Bucket to the keys of its items, each key once.
        seed: The run's seed.
        epoch: Number of the pass over the data, from 0.
        global_batch_size: Samples per step: batch size x ranks x accumulation.
        drop_last: Leave out the incomplete batch of each bucket (other items in each epoch).
        shuffle: Another order in each epoch, buckets mixed; else the given one, bucket by bucket.

    Returns:
        The steps in order. A batch smaller than `global_batch_size` is a bucket's last.
    """
    batches = []
    for bucket, keys in items.items():
        ordered = sorted(keys, key=lambda key: seed_for(seed, "order", epoch, key))
        chosen = ordered if shuffle else keys
        for begin in range(0, len(chosen), global_batch_size):
            batch = tuple(chosen[begin : begin + global_batch_size])
            if len(batch) == global_batch_size or not drop_last:
                batches.append(GlobalBatch(bucket, batch))
    if shuffle:
        batches.sort(key=lambda batch: seed_for(seed, "steps", epoch, *batch.keys))
    return batches


def num_epoch_steps(counts: Iterable[int], global_batch_size: int, *, drop_last: bool) -> int:
    """Count an epoch's steps from the number of items in each bucket; all epochs have as many."""
    if drop_last:
        return sum(count // global_batch_size for count in counts)
    return sum(-(-count // global_batch_size) for count in counts)


def micro_batches(
    batch: GlobalBatch, *, rank: int, num_ranks: int, batch_size: int
) -> list[MicroBatch]:
    """Deal a global batch out, as evenly as may be: equally many micro-batches for every rank.

    Args:
        batch: Any number of samples.
        rank: Which share to return.
        num_ranks: How many ranks share the batch.
        batch_size: Most samples in a micro-batch.

    Returns:
        The rank's micro-batches in order, none of them empty.
    """
    num_samples = len(batch.keys)
    num_micro = -(-num_samples // (batch_size * num_ranks))
    num_slots = num_micro * num_ranks
    dealt = []
    for slot in range(rank, num_slots, num_ranks):
        begin, end = (number * num_samples // num_slots for number in (slot, slot + 1))
        if begin < end:
            dealt.append(MicroBatch(batch.keys[begin:end], borrowed=False))
        else:
            dealt.append(MicroBatch(batch.keys[:1], borrowed=True))
    return dealt

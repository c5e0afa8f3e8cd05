import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvkf.training.batch_plan import (
    GlobalBatch,
    epoch_batches,
    micro_batches,
    num_epoch_steps,
)

COUNTS = st.dictionaries(
    st.sampled_from(["64x64x17", "96x64x33", "64x96x33", "128x64x9"]),
    st.integers(1, 40),
    min_size=1,
)
BATCH_SIZES = st.integers(1, 9)


def items_of(counts: dict[str, int]) -> dict[str, list[str]]:
    return {
        bucket: [f"{bucket}/{number}" for number in range(count)]
        for bucket, count in counts.items()
    }


@given(COUNTS, BATCH_SIZES, st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_an_epoch_has_every_item_once_and_only_batches_of_one_bucket(
    counts: dict[str, int], batch_size: int, seed: int, epoch: int, shuffle: bool
) -> None:
    items = items_of(counts)
    batches = epoch_batches(
        items, seed=seed, epoch=epoch, global_batch_size=batch_size, shuffle=shuffle
    )
    drawn = Counter(key for batch in batches for key in batch.keys)
    assert drawn == Counter(key for keys in items.values() for key in keys)
    assert all(key.startswith(f"{batch.bucket}/") for batch in batches for key in batch.keys)
    assert all(0 < len(batch.keys) <= batch_size for batch in batches)
    assert len(batches) == num_epoch_steps(counts.values(), batch_size, drop_last=False)


@given(COUNTS, BATCH_SIZES)
def test_dropping_the_last_leaves_only_whole_batches(
    counts: dict[str, int], batch_size: int
) -> None:
    batches = epoch_batches(
        items_of(counts), seed=1, epoch=0, global_batch_size=batch_size, drop_last=True
    )
    assert all(len(batch.keys) == batch_size for batch in batches)
    assert len(batches) == num_epoch_steps(counts.values(), batch_size, drop_last=True)


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 8))
def test_ranks_share_a_global_batch_without_loss_or_repeat(
    num_samples: int, batch_size: int, num_ranks: int
) -> None:
    batch = GlobalBatch("64x64x17", tuple(map(str, range(num_samples))))
    shares = [
        micro_batches(batch, rank=rank, num_ranks=num_ranks, batch_size=batch_size)
        for rank in range(num_ranks)
    ]
    trained = Counter(
        key for share in shares for micro in share if not micro.borrowed for key in micro.keys
    )
    assert trained == Counter(batch.keys)
    assert len({len(share) for share in shares}) == 1, "a rank would wait for the others for ever"
    for share in shares:
        for micro in share:
            assert 0 < len(micro.keys) <= batch_size


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 3))
def test_two_ranks_with_half_the_batch_train_the_same_steps_as_one(
    count: int, half: int, epoch: int
) -> None:
    batches = epoch_batches(
        items_of({"64x64x17": count}), seed=3, epoch=epoch, global_batch_size=2 * half
    )
    for batch in batches:
        alone = micro_batches(batch, rank=0, num_ranks=1, batch_size=2 * half)
        shared = [
            micro
            for rank in range(2)
            for micro in micro_batches(batch, rank=rank, num_ranks=2, batch_size=half)
            if not micro.borrowed
        ]
        assert [key for micro in alone for key in micro.keys] == list(batch.keys)
        assert sorted(key for micro in shared for key in micro.keys) == sorted(batch.keys)


def test_epochs_and_seeds_differ_in_order_and_composition() -> None:
    items = items_of({"64x64x17": 20, "96x64x33": 20})
    plans = [
        epoch_batches(items, seed=seed, epoch=epoch, global_batch_size=4)
        for seed, epoch in [(1, 0), (1, 1), (2, 0)]
    ]
    assert plans[0] != plans[1]
    assert plans[0] != plans[2]
    assert {frozenset(batch.keys) for batch in plans[0]} != {
        frozenset(batch.keys) for batch in plans[1]
    }


def test_buckets_are_mixed_across_the_steps_of_an_epoch() -> None:
    batches = epoch_batches(
        items_of({"64x64x17": 40, "96x64x33": 40}), seed=1, epoch=0, global_batch_size=4
    )
    changes = sum(one.bucket != other.bucket for one, other in itertools.pairwise(batches))
    assert changes > 4


def test_the_given_order_stays_without_shuffling() -> None:
    items = {"b": ["b/1", "b/0"], "a": ["a/0"]}
    for epoch in range(2):
        batches = epoch_batches(items, seed=1, epoch=epoch, global_batch_size=1, shuffle=False)
        assert [batch.keys[0] for batch in batches] == ["b/1", "b/0", "a/0"]


def test_a_new_item_moves_no_other_within_its_bucket() -> None:
    before = items_of({"64x64x17": 30})
    after = {"64x64x17": [*before["64x64x17"], "64x64x17/new"]}

    def order(items: dict[str, list[str]]) -> list[str]:
        batches = epoch_batches(items, seed=1, epoch=0, global_batch_size=99)
        return [key for key in batches[0].keys if not key.endswith("new")]

    assert order(before) == order(after)


@pytest.mark.parametrize(("num_samples", "expected"), [(5, {2, 3}), (2, {1}), (1, {0, 1})])
def test_an_incomplete_batch_is_shared_evenly(num_samples: int, expected: set[int]) -> None:
    batch = GlobalBatch("64x64x17", tuple(map(str, range(num_samples))))
    shares = [micro_batches(batch, rank=rank, num_ranks=2, batch_size=4) for rank in range(2)]
    counts = [0 if micro.borrowed else len(micro.keys) for share in shares for micro in share]
    assert set(counts) == expected
    assert sum(counts) == num_samples

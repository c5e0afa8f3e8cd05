"""Measuring the memory of real tensors: what PyTorch's CPU allocator reports to its profiler."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile


@dataclass
class Measured:
    """The most bytes that were allocated at once inside of `measured_memory`."""

    peak_bytes: int = 0


@contextmanager
def measured_memory() -> Iterator[Measured]:
    """Measure what is allocated inside, beside what was there before."""
    measured = Measured()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield measured
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    )
    live = 0
    for _, change in changes:
        live += change
        measured.peak_bytes = max(measured.peak_bytes, live)

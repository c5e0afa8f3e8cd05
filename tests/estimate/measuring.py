"""Measuring the memory of real tensors: what PyTorch's CPU allocator reports to its profiler."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
    own = _own_memory_of_convolutions(events)
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in events
        if event.name() == "[memory]" and not any(event.start_ns() in span for span in own)
    )
    live = 0
    for _, change in changes:
        live += change
        measured.peak_bytes = max(measured.peak_bytes, live)


def _own_memory_of_convolutions(events: Sequence[Any]) -> list[range]:
    """List when oneDNN's convolutions take memory for themselves: all the time but for results.

    A GPU's have workspaces of their own, which are not counted either.
    """
    own = []
    results = [_span(event) for event in events if event.name() == "aten::empty"]
    for span in (_span(event) for event in events if event.name() == "aten::mkldnn_convolution"):
        within = sorted((of for of in results if of.start in span), key=lambda of: of.start)
        begins = [span.start, *(of.stop for of in within)]
        ends = [*(of.start for of in within), span.stop]
        own += [range(begin, end) for begin, end in zip(begins, ends, strict=True)]
    return own


def _span(event: Any) -> range:
    return range(event.start_ns(), event.start_ns() + event.duration_ns() + 1)

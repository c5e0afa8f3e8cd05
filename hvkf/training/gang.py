"""The ranks that train together: what they tell each other besides gradients, over the CPU."""

import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist

from hvkf.errors import HvkfError

ResultT = TypeVar("ResultT")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A rank may wait while another validates or saves; the reference's value.
TIMEOUT = timedelta(seconds=5400)


class Gang:
    """This process among the ranks. With one rank, nothing is sent."""

    def __init__(self, rank: int, num_ranks: int) -> None:
        self.rank = rank
        self.num_ranks = num_ranks
        # Besides nccl's, so that telling of a stop waits for no device.
        self._group: dist.ProcessGroup | None = None
        if num_ranks > 1:
            group = dist.new_group(backend="gloo", timeout=TIMEOUT)
            assert isinstance(group, dist.ProcessGroup)
            self._group = group

    @property
    def is_main(self) -> bool:
        """Whether this rank is the one that writes."""
        return self.rank == 0

    def exchange(self, values: Sequence[float]) -> list[list[float]]:
        """Give every rank each rank's values (as many from each), in order of ranks."""
        if self._group is None:
            return [list(values)]
        own = torch.tensor(list(values), dtype=torch.float64)
        gathered = [torch.empty_like(own) for _ in range(self.num_ranks)]
        dist.all_gather(gathered, own, group=self._group)
        return [tensor.tolist() for tensor in gathered]

    def part(self) -> None:
        """Wait for all ranks before leaving: who ends first breaks off what others still read.

        All ranks must call this, when they end for a reason that all of them know.
        """
        # Another may be gone already, once it has heard all the others here.
        with suppress(RuntimeError):
            self.exchange([0.0])

    def gather_texts(self, texts: Sequence[str]) -> list[str]:
        """Give every rank all ranks' texts."""
        if self._group is None:
            return list(texts)
        gathered: list[list[str]] = [[] for _ in range(self.num_ranks)]
        dist.all_gather_object(gathered, list(texts), group=self._group)
        return [text for of_rank in gathered for text in of_rank]

    def on_main(self, work: Callable[[], ResultT]) -> ResultT:
        """Do something on the main rank; its result, or its fault, is every rank's.

        Raises:
            HvkfError: as raised there.
        """
        if self._group is None:
            return work()
        outcome: list[object] = [None]
        if self.is_main:
            try:
                outcome = [work()]
            except Exception as fault:  # all ranks raise it below, this one too
                outcome = [_sendable(fault)]
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        if isinstance(outcome[0], Exception):
            self.part()
            raise outcome[0]
        return outcome[0]  # type: ignore[return-value]


def _sendable(fault: Exception) -> Exception:
    """Return the fault, or one that says the same where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(fault))
    except Exception:  # whatever a fault's own pickling raises
        return HvkfError(f"{type(fault).__name__}: {fault}")
    return fault


class StopSignal:
    """Remembers that this process was told to stop."""

    def __init__(self) -> None:
        self.is_set = False

    def set(self, signum: int, frame: FrameType | None) -> None:
        """Take a signal."""
        self.is_set = True


@contextmanager
def stop_on_signal() -> Iterator[StopSignal]:
    """Take SIGTERM and Ctrl-C as the wish to stop after the step that is under way.

    They may come more than once: a terminal and torchrun both pass Ctrl-C on.
    """
    stop = StopSignal()
    previous = {signum: signal.signal(signum, stop.set) for signum in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

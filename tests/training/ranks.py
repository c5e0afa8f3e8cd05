"""Ranks as forked children of the test process, so that torch is imported once for all of them."""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable

from hvkf.errors import HvkfError, Stopped

TIMEOUT_S = 100


def free_port() -> int:
    """Find a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def in_ranks(num_ranks: int, work: Callable[[int], None]) -> list[int]:
    """Run `work(rank)` in as many processes as torchrun would start; return their exit codes.

    A rank that fails prints its fault and ends with the code that the command line would use; one
    that is killed gives minus its signal.
    """
    port = free_port()
    children = []
    for rank in range(num_ranks):
        child = os.fork()
        if child == 0:
            _be_rank(rank, num_ranks, port, work)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _be_rank(rank: int, num_ranks: int, port: int, work: Callable[[int], None]) -> None:
    code = 1
    try:
        signal.alarm(TIMEOUT_S)
        if num_ranks > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(num_ranks),
                "LOCAL_WORLD_SIZE": str(num_ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        os.environ["OMP_NUM_THREADS"] = "1"
        work(rank)
        code = 0
    except (HvkfError, Stopped) as fault:
        print(f"rank {rank}: {fault}", file=sys.stderr, flush=True)
        code = fault.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # Not sys.exit: the child must not run the test session's cleanup.
        os._exit(code)

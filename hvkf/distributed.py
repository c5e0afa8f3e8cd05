"""Several processes for one training: how they are started, and what their ends mean. No torch.

`python -m hvkf.distributed --processes N -- MODULE ARGUMENTS` runs MODULE in N ranks by torchrun
and ends with the exit code that the ranks mean: torchrun itself answers 1 whatever they said.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from hvkf.errors import BadInput, HvkfError, OwnError, Stopped, TryAgain
from hvkf.processes import PARENT_VARIABLE, follow_parent
from hvkf.stops import cause_of_end

EXIT_CODES_VARIABLE = "HVKF_EXIT_CODES"
WORLD_SIZE_VARIABLE = "WORLD_SIZE"
RANK_VARIABLE = "RANK"
LOCAL_RANK_VARIABLE = "LOCAL_RANK"
# Below Kubernetes' default grace period of 30 s, so that the codes are still mapped.
SHUTDOWN_TIMEOUT_S = 25
# What a job ended by, when its ranks ended differently: the first of these that one of them says.
SEVERITY = (BadInput.exit_code, OwnError.exit_code, 1, TryAgain.exit_code, Stopped.exit_code)


def num_ranks(configured: int) -> int:
    """Count the ranks of this job: as its launcher says, or as configured where there is none."""
    return int(os.environ.get(WORLD_SIZE_VARIABLE, configured))


def is_launched() -> bool:
    """Whether torchrun or `accelerate launch` started this process as one of several ranks."""
    return RANK_VARIABLE in os.environ and WORLD_SIZE_VARIABLE in os.environ


def rank() -> int:
    """Return this process's rank; 0 where there is only one."""
    return int(os.environ.get(RANK_VARIABLE, "0"))


def is_first_of_node() -> bool:
    """Whether this process is the first rank of its machine, or the only one."""
    return os.environ.get(LOCAL_RANK_VARIABLE, "0") == "0"


def launch_command(
    arguments: Sequence[str],
    *,
    num_processes: int,
    num_nodes: int = 1,
    node_rank: int | str = 0,
    rendezvous: str | None = None,
    shutdown_timeout_s: int | None = None,
) -> list[str]:
    """Write the command that runs `python -m <arguments>` in several ranks.

    Args:
        arguments: A module and what it is given, such as hvkf.cli train run --plan ...
        num_processes: Ranks on this machine.
        num_nodes: Machines.
        node_rank: Which of them this is, or the variable that will say it.
        rendezvous: HOST:PORT of machine 0; needed with several machines.
        shutdown_timeout_s: Seconds that ranks have to save their work when told to stop.
    """
    options = ["--processes", str(num_processes)]
    if num_nodes > 1:
        if rendezvous is None:
            raise BadInput(f"{num_nodes} machines need the HOST:PORT of machine 0 to meet at.")
        options += ["--nodes", str(num_nodes), "--node-rank", str(node_rank)]
        options += ["--rendezvous", rendezvous]
    if shutdown_timeout_s is not None:
        options += ["--shutdown-timeout", str(shutdown_timeout_s)]
    return [sys.executable, "-m", "hvkf.distributed", *options, "--", *arguments]


def torchrun_command(options: argparse.Namespace, shutdown_timeout_s: int) -> list[str]:
    """Write torchrun's command: no restarts, since a new start goes on from the last checkpoint."""
    meeting = ["--standalone"]
    if options.nodes > 1:
        host, _, port = options.rendezvous.rpartition(":")
        meeting = ["--nnodes", str(options.nodes), "--node-rank", str(options.node_rank)]
        meeting += ["--master-addr", host, "--master-port", port]
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nproc-per-node", str(options.processes)),
        *("--max-restarts", "0", "--shutdown-timeout", str(shutdown_timeout_s)),
        *meeting,
        "-m",
        *options.arguments,
    ]


@contextlib.contextmanager
def exit_code_recorded() -> Iterator[None]:
    """Tell the process that launched this rank how its work ended, by its exit code."""
    code = OwnError.exit_code
    try:
        yield
        code = 0
    except Stopped as stop:
        code = stop.exit_code
        raise
    except Exception as fault:
        cause = cause_of_end(fault)
        if isinstance(cause, HvkfError | Stopped):
            code = cause.exit_code
        raise
    finally:
        folder = os.environ.get(EXIT_CODES_VARIABLE)
        if folder is not None:
            (Path(folder) / str(rank())).write_text(str(code))


def combined_exit_code(launcher_code: int, codes: Mapping[int, int], num_processes: int) -> int:
    """Say how a job ended.

    Args:
        launcher_code: torchrun's exit code.
        codes: The codes that ranks recorded. A rank without one was killed: that may pass.
        num_processes: Ranks on this machine.
    """
    if launcher_code == 0:
        return 0
    said = {code for code in codes.values() if code}
    if len(codes) < num_processes:
        said.add(TryAgain.exit_code)
    known = [code for code in SEVERITY if code in said]
    return known[0] if known else 1


def run_ranks(options: argparse.Namespace) -> int:
    """Run the ranks, pass signals on to them, and return the exit code that they mean."""
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    with tempfile.TemporaryDirectory(prefix="hvkf-ranks-") as folder:
        process = subprocess.Popen(
            torchrun_command(options, options.shutdown_timeout),
            env={**os.environ, EXIT_CODES_VARIABLE: folder},
            preexec_fn=follow_parent,
        )

        def pass_on(signum: int, frame: FrameType | None) -> None:
            process.send_signal(signum)

        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, pass_on)
        launcher_code = process.wait()
        codes = {int(file.name): int(file.read_text()) for file in Path(folder).iterdir()}
    return combined_exit_code(launcher_code, codes, options.processes)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the launcher's own command line."""
    parser = argparse.ArgumentParser(prog="python -m hvkf.distributed", description=__doc__)
    parser.add_argument("--processes", type=int, required=True, help="Ranks on this machine.")
    parser.add_argument("--nodes", type=int, default=1, help="Machines.")
    parser.add_argument("--node-rank", type=int, default=0, help="Which of them this is.")
    parser.add_argument("--rendezvous", help="HOST:PORT of machine 0, with several machines.")
    parser.add_argument(
        "--shutdown-timeout",
        type=int,
        default=SHUTDOWN_TIMEOUT_S,
        help="Seconds that ranks have to save their work when told to stop.",
    )
    parser.add_argument("arguments", nargs="+", help="Module and its arguments, after --.")
    return parser.parse_args(arguments)


def main() -> None:
    """Run a module in several ranks on this machine."""
    follow_parent()
    sys.exit(run_ranks(parse(sys.argv[1:])))


if __name__ == "__main__":
    main()

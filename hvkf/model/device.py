"""Which device a worker process computes on."""

import os

import torch

from hvkf.shown import counted


def best_device() -> torch.device:
    """Return this process's GPU, by its local rank, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def device_name() -> str:
    """Name the kind of device that `best_device` gives, as timings are told apart by it."""
    device = best_device()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {counted(torch.get_num_threads(), 'thread')}"

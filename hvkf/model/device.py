"""Which device a worker process computes on."""

import os

import torch


def best_device() -> torch.device:
    """Return this process's GPU, by its local rank, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")

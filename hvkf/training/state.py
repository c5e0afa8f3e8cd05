"""The state of a training between two steps, as tensors and JSON: exact, and free of pickles."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

Tensors = dict[str, torch.Tensor]
OPTIMIZER_PREFIX = "state"
GROUP_PREFIX = "group"


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to the CPU; one that is sharded over ranks is gathered, on all of them."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().to("cpu", copy=True).contiguous()


@torch.no_grad()
def fill(target: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a whole tensor into a live one, sharding it as that one is."""
    target.copy_(_placed_like(target, value))


def _placed_like(target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    moved = value.to(target.device, copy=True)
    if isinstance(target, DTensor):
        return distribute_tensor(moved, target.device_mesh, target.placements)
    return moved


def optimizer_state(
    optimizer: torch.optim.Optimizer, names: Mapping[torch.Tensor, str]
) -> tuple[Tensors, dict[str, Any]]:
    """Take an optimizer's state apart; `names` names its parameters.

    Returns:
        Its tensors by "state.<what>.<parameter>" and "group.<number>.<what>", and all that is not a
        tensor, as JSON.
    """
    tensors: Tensors = {}
    values: dict[str, Any] = {"state": {}, "groups": []}
    for parameter, state in optimizer.state.items():
        name = names[parameter]
        for what, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{OPTIMIZER_PREFIX}.{what}.{name}"] = whole(value)
            else:
                values["state"].setdefault(name, {})[what] = value
    for number, group in enumerate(optimizer.param_groups):
        plain = {}
        for what, value in group.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{GROUP_PREFIX}.{number}.{what}"] = whole(value)
            elif what != "params":
                plain[what] = value
        values["groups"].append(plain)
    return tensors, values


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[torch.Tensor, str],
    tensors: Mapping[str, torch.Tensor],
    values: Mapping[str, Any],
) -> None:
    """Put an optimizer's state back exactly.

    Not by `load_state_dict`, which casts state to the parameter's type: what came_pytorch keeps in
    float32 for bfloat16 weights would change.
    """
    parameters = {name: parameter for parameter, name in names.items()}
    optimizer.state.clear()
    for group, plain in zip(optimizer.param_groups, values["groups"], strict=True):
        group.update(_tuples(plain))
    on_device = _parameters_counting_on_device(optimizer)
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == GROUP_PREFIX:
            number, _, what = rest.partition(".")
            optimizer.param_groups[int(number)][what] = value.clone()
            continue
        what, _, name = rest.partition(".")
        parameter = parameters[name]
        if what == "step" and parameter not in on_device:
            optimizer.state[parameter][what] = value.clone()
        elif value.shape == parameter.shape:
            optimizer.state[parameter][what] = _placed_like(parameter, value)
        else:
            optimizer.state[parameter][what] = value.to(parameter.device, copy=True)
    for name, state in values["state"].items():
        optimizer.state[parameters[name]].update(_tuples(state))


def _parameters_counting_on_device(optimizer: torch.optim.Optimizer) -> set[torch.Tensor]:
    """Find the parameters whose count of steps lies on their device, as PyTorch's optimizers do."""
    return {
        parameter
        for group in optimizer.param_groups
        if group.get("capturable") or group.get("fused")
        for parameter in group["params"]
    }


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Make the lists of JSON tuples again: betas."""
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }


def scheduler_state(scheduler: Any) -> dict[str, Any]:
    """Take the state of a learning-rate scheduler, as JSON; its functions are made anew."""
    return {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"}


def load_scheduler_state(scheduler: Any, state: Mapping[str, Any]) -> None:
    """Put a learning-rate scheduler's state back."""
    functions: Sequence[object] = [None] * len(state["base_lrs"])
    scheduler.load_state_dict({**state, "lr_lambdas": list(functions)})

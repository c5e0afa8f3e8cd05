"""The LoRA on the transformer: adding it, its weights, loading and merging it.

Method: LoRA (arXiv:2106.09685) by peft, on the layers that the reference adapts.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from peft.tuners.lora import LoraLayer

from hvkf.errors import BadInput
from hvkf.model.lora_file import LoraFile, is_norm_weight, lora_config, read_lora, shown
from hvkf.model.widening import is_widened

logger = logging.getLogger(__name__)

ADAPTER = "default"
ALL_LINEAR = "all-linear"
INPUT_LAYER = "x_embedder.proj"


@dataclass(frozen=True)
class LoadedLora:
    """What `load_lora` put into the transformer."""

    rank: int
    alpha: float
    num_layers: int
    num_norm_weights: int


def add_lora(
    transformer: HunyuanVideoTransformer3DModel,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    target: str | Sequence[str] = ALL_LINEAR,
    init: bool | str = True,
    train_norm_layers: bool = False,
    dtype: torch.dtype | None = None,
) -> list[torch.nn.Parameter]:
    """Add a new LoRA for training; all else is frozen.

    Args:
        transformer: Widened transformer.
        rank: Rank of every layer.
        alpha: Scale of the LoRA times its rank.
        dropout: Dropout before the down projection.
        target: "all-linear": every linear layer whose name has no "norm", and `x_embedder.proj`;
            or layer names joined by commas (suffixes count, as in peft), `x_embedder.proj` added;
            or a sequence of layer names, taken as they are.
        init: True (B is zero), False (random) or "gaussian", as peft names them. The draws come
            from torch's global generator.
        train_norm_layers: Train the `norm_q/k/added` weights as well.
        dtype: Type of the LoRA's weights; left out, the transformer's.

    Returns:
        The trainable parameters, in the model's order.

    Raises:
        BadInput: the transformer is not widened, a target matches nothing, or an unknown `init`.
    """
    _check_widened(transformer)
    if init not in (True, False, "gaussian"):
        raise BadInput(
            f"network.init_lora_weights {init!r} is not offered, since it changes the base model's "
            "weights or cannot initialise the input layer: use true, false or gaussian."
        )
    layers = target_layers(transformer, target)
    config = lora_config(rank, alpha, layers, lora_dropout=dropout, init_lora_weights=init)
    # Asked once: it walks through all modules, which took 20 s of each start for 930 weights.
    lora_dtype = dtype or transformer.dtype
    transformer.requires_grad_(False)
    transformer.add_adapter(config, ADAPTER)
    for name, parameter in transformer.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(lora_dtype)
        elif train_norm_layers and is_norm_weight(name):
            parameter.requires_grad_(True)
    return [parameter for parameter in transformer.parameters() if parameter.requires_grad]


def target_layers(
    transformer: HunyuanVideoTransformer3DModel, target: str | Sequence[str]
) -> list[str]:
    """Name the layers that a target means, in the model's order; see `add_lora`.

    Raises:
        BadInput: a name matches no linear or convolution layer.
    """
    layers = {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv3d)
    }
    if target == ALL_LINEAR:
        chosen = {name for name, module in layers.items() if isinstance(module, torch.nn.Linear)}
        chosen.add(INPUT_LAYER)
    else:
        suffixes = _split(target) if isinstance(target, str) else list(target)
        chosen = set()
        for suffix in suffixes:
            matching = {name for name in layers if f".{name}".endswith(f".{suffix}")}
            if not matching:
                raise BadInput(
                    f"No linear layer of the transformer is called {suffix!r}: use all-linear, or "
                    "names such as to_q, to_k, to_v, to_out.0, proj_mlp."
                )
            chosen |= matching
    return [name for name in layers if name in chosen and "norm" not in name]


def _split(target: str) -> list[str]:
    suffixes = [part.strip() for part in target.split(",")]
    return suffixes if INPUT_LAYER in suffixes else [*suffixes, INPUT_LAYER]


def lora_state_dict(transformer: HunyuanVideoTransformer3DModel) -> dict[str, torch.Tensor]:
    """Name the LoRA's weights, and the norm weights that are trained, as a LoRA file does.

    Returns:
        "<layer>.lora_A.weight", "<layer>.lora_B.weight" and "<norm>.weight" to the live tensors.

    Raises:
        BadInput: the transformer has no LoRA.
    """
    state: dict[str, torch.Tensor] = {}
    for name, layer in _lora_layers(transformer).items():
        state[f"{name}.lora_A.weight"] = layer.lora_A[ADAPTER].get_parameter("weight")
        state[f"{name}.lora_B.weight"] = layer.lora_B[ADAPTER].get_parameter("weight")
    for name, parameter in transformer.named_parameters():
        if parameter.requires_grad and is_norm_weight(name) and ".lora_" not in name:
            state[name] = parameter
    return state


@torch.no_grad()
def load_lora_state(
    transformer: HunyuanVideoTransformer3DModel, state: Mapping[str, torch.Tensor]
) -> None:
    """Copy weights, named as by `lora_state_dict`, into the LoRA that the transformer has.

    Raises:
        BadInput: keys or shapes differ; nothing was copied.
    """
    own = {**_norm_weights(transformer), **lora_state_dict(transformer)}
    required = set(lora_state_dict(transformer))
    missing, unknown = sorted(required - set(state)), sorted(set(state) - set(own))
    reshaped = sorted(
        name for name in set(state) & set(own) if state[name].shape != own[name].shape
    )
    for names, fault in (
        (missing, "lacks"),
        (unknown, "adapts other layers, such as"),
        (reshaped, "has other shapes in"),
    ):
        if names:
            raise BadInput(
                f"The LoRA {fault} {shown(names)}: use one of the same rank, layers and checkpoint."
            )
    for name, weight in state.items():
        own[name].copy_(weight)


def load_lora(
    transformer: HunyuanVideoTransformer3DModel,
    path: str | Path,
    *,
    alpha: float | None = None,
) -> LoadedLora:
    """Load a LoRA file for inference; its norm weights replace the transformer's.

    Args:
        transformer: Widened transformer without a LoRA.
        path: File or folder; see `lora_file.read_lora`.
        alpha: Alpha of a file that records none; left out there, alpha = rank is assumed, with a
            warning.

    Raises:
        BadInput: the file cannot be read, or does not fit the transformer; keys are named.
    """
    _check_widened(transformer)
    if any(isinstance(module, LoraLayer) for module in transformer.modules()):
        raise BadInput(
            f"{path} cannot be loaded over another LoRA: load the transformer again first."
        )
    contents = read_lora(path)
    chosen_alpha = _choose_alpha(contents, alpha, path)
    _check_fit(transformer, contents, path)
    # peft takes listed names as endings: a pattern adapts these layers and no others.
    exactly = "|".join(re.escape(name) for name in contents.down)
    config = lora_config(contents.rank, chosen_alpha, exactly)
    transformer.add_adapter(config, ADAPTER)
    for name, parameter in transformer.named_parameters():
        if ".lora_" in name:
            # As in the file: merging then rounds once, to the base weight's type.
            parameter.data = parameter.data.to(next(iter(contents.down.values())).dtype)
    load_lora_state(transformer, contents.weights)
    transformer.requires_grad_(False)
    return LoadedLora(contents.rank, chosen_alpha, len(contents.down), len(contents.norms))


def fuse_lora(transformer: HunyuanVideoTransformer3DModel) -> None:
    """Merge the LoRA into the base weights and remove its layers: rendering pays nothing for it."""
    transformer.fuse_lora(adapter_names=[ADAPTER])
    transformer.unload_lora()


def _choose_alpha(contents: LoraFile, alpha: float | None, path: str | Path) -> float:
    if contents.alpha is not None:
        if alpha is not None and alpha != contents.alpha:
            logger.warning(
                "%s records alpha %g, which is used; the given alpha %g is not.",
                path,
                contents.alpha,
                alpha,
            )
        return contents.alpha
    if alpha is None:
        logger.warning(
            "%s records no alpha: alpha = rank = %d is assumed. If it was trained with another, "
            "the videos are wrong: give its alpha (--render.lora_alpha).",
            path,
            contents.rank,
        )
        return float(contents.rank)
    return alpha


def _check_fit(
    transformer: HunyuanVideoTransformer3DModel, contents: LoraFile, path: str | Path
) -> None:
    layers = dict(transformer.named_modules())
    unknown = [name for name in contents.down if not hasattr(layers.get(name), "weight")]
    unknown += [name for name in contents.norms if name not in _norm_weights(transformer)]
    if unknown:
        raise BadInput(
            f"{path} adapts layers that the transformer lacks: {shown(unknown)}; it was trained on "
            "another model."
        )
    reshaped = []
    for name, down in contents.down.items():
        base = layers[name].weight
        if down.shape[1:] != base.shape[1:] or contents.up[name].shape[0] != base.shape[0]:
            reshaped.append(f"{name} ({list(base.shape)})")
    if reshaped:
        raise BadInput(
            f"{path} does not fit the transformer's layers {shown(reshaped)}: use the checkpoint "
            "that it was trained on."
        )


def _lora_layers(transformer: HunyuanVideoTransformer3DModel) -> dict[str, LoraLayer]:
    layers = {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, LoraLayer)
    }
    if not layers:
        raise BadInput("The transformer has no LoRA: add or load one first.")
    return layers


def _norm_weights(transformer: HunyuanVideoTransformer3DModel) -> dict[str, torch.Tensor]:
    return {
        name: parameter
        for name, parameter in transformer.named_parameters()
        if is_norm_weight(name) and ".lora_" not in name
    }


def _check_widened(transformer: HunyuanVideoTransformer3DModel) -> None:
    if not is_widened(transformer):
        raise BadInput(
            "The transformer's input is not widened: load it with hvkf's load_transformer."
        )

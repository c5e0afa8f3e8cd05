"""LoRA files in diffusers' format, with alpha; equal weights give equal bytes.

A file may hold trained norm weights beside the LoRA; hvkf and the reference read them, diffusers'
own `load_lora_weights` wants them removed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from peft import LoraConfig

from hvkf.errors import BadInput
from hvkf.model.widening import INPUT_CHANNELS
from hvkf.user_files import explain_unreadable, open_regular, reason_of, shortened

FILE_NAME = "pytorch_lora_weights.safetensors"
PREFIX = "transformer."
ADAPTER_METADATA_KEY = "lora_adapter_metadata"
OWN_METADATA_KEY = "hvkf"
FORMAT_VERSION = 1
NORM_WEIGHTS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
SUFFIXES = (".safetensors", ".sft")
LENGTH_BYTES = 8
MAX_ALPHA = 1_000_000
NUM_SHOWN_KEYS = 3
MAX_SHOWN_KEY = 90
WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
UNREADABLE = (safetensors.SafetensorError, OSError, ValueError, TypeError, RuntimeError)


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA file holds.

    Attributes:
        down: Module name to its matrix A, [rank, in] or [rank, in, *kernel].
        up: Module name to its matrix B, [out, rank] or [out, rank, 1, 1, 1].
        norms: Parameter name to a trained norm weight.
        rank: Rank of every layer.
        alpha: Recorded alpha; None in files of the reference.
    """

    down: dict[str, torch.Tensor]
    up: dict[str, torch.Tensor]
    norms: dict[str, torch.Tensor]
    rank: int
    alpha: float | None

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """All tensors under the names that `lora.lora_state_dict` gives them."""
        named = {f"{name}.lora_A.weight": weight for name, weight in self.down.items()}
        named |= {f"{name}.lora_B.weight": weight for name, weight in self.up.items()}
        return named | self.norms


def lora_config(rank: int, alpha: float, layers: list[str] | str, **further: Any) -> LoraConfig:
    """Make peft's configuration of a LoRA on the given layers, or on those of a pattern."""
    settings = {"r": rank, "lora_alpha": alpha, "target_modules": layers, **further}
    return LoraConfig(**settings)


def is_norm_weight(name: str) -> bool:
    """Whether a parameter is one of the norms that `train_norm_layers` trains."""
    return any(norm in name for norm in NORM_WEIGHTS)


def save_lora(
    weights: Mapping[str, torch.Tensor],
    path: str | Path,
    *,
    alpha: float,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a LoRA in diffusers' format.

    Args:
        weights: As from `lora.lora_state_dict`.
        path: A file (.safetensors or .sft) or a folder, which gets diffusers' file name.
        alpha: The LoRA's alpha.
        extra: Further facts to record, JSON values; they must not depend on time or machine.

    Returns:
        The file. Equal weights, alpha and extra give equal bytes.
    """
    file = Path(path) if Path(path).suffix in SUFFIXES else Path(path) / FILE_NAME
    contents = _sort_out(dict(weights), str(file))
    tensors = {
        PREFIX + name: weight.detach().cpu().contiguous() for name, weight in weights.items()
    }
    metadata = {
        "format": "pt",
        ADAPTER_METADATA_KEY: _canonical(_adapter_metadata(contents, alpha)),
        OWN_METADATA_KEY: _canonical(
            {"format_version": FORMAT_VERSION, "input_channels": INPUT_CHANNELS, **(extra or {})}
        ),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(_with_sorted_metadata(safetensors.torch.save(tensors, metadata)))
    return file


def read_lora(path: str | Path) -> LoraFile:
    """Read a LoRA file of hvkf, diffusers or the reference (.sft), checking its layout.

    Raises:
        BadInput: no such file, a pickle, damaged, unknown or unpaired keys, or several ranks.
    """
    with explain_unreadable(f"The LoRA {shortened(str(path))}", "give another file"):
        file = _find(Path(path))
        open_regular(file).close()
    try:
        with safetensors.safe_open(str(file), framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except UNREADABLE as error:
        raise BadInput(
            f"{file} is not a readable safetensors file: {reason_of(error)}; copy it again."
        ) from error
    # The reference's checkpoints give norm weights the prefix twice.
    named = {
        name.removeprefix(PREFIX).removeprefix(PREFIX): weight for name, weight in tensors.items()
    }
    contents = _sort_out(named, str(file))
    alpha = _recorded_alpha(metadata, file)
    return LoraFile(contents.down, contents.up, contents.norms, contents.rank, alpha)


def _find(path: Path) -> Path:
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if (path / FILE_NAME) in found:
            return path / FILE_NAME
        if len(found) != 1:
            raise BadInput(
                f"The folder {path} holds {len(found)} LoRA files where one is expected: name the "
                "file."
            )
        return found[0]
    if path.suffix not in SUFFIXES:
        raise BadInput(
            f"{path} is not a .safetensors or .sft file, and pickled weights can run code when "
            "they are loaded: convert it where it was made, with safetensors.torch.save_file("
            "torch.load(FILE, weights_only=True), 'lora.safetensors')."
        )
    if not path.is_file():
        raise BadInput(f"There is no LoRA file {path}.")
    return path


def _sort_out(named: dict[str, torch.Tensor], origin: str) -> LoraFile:
    down, up, norms, unknown = {}, {}, {}, []
    for name, weight in sorted(named.items()):
        if name.endswith(".lora_A.weight"):
            down[name.removesuffix(".lora_A.weight")] = weight
        elif name.endswith(".lora_B.weight"):
            up[name.removesuffix(".lora_B.weight")] = weight
        elif is_norm_weight(name):
            norms[name] = weight
        else:
            unknown.append(name)
    if unknown:
        raise BadInput(
            f"{origin} holds keys that are neither LoRA (lora_A, lora_B) nor norm weights: "
            f"{shown(unknown)}; save it in diffusers' format."
        )
    unpaired = [f"{name}.lora_B.weight" for name in down if name not in up]
    unpaired += [f"{name}.lora_A.weight" for name in up if name not in down]
    if unpaired or not down:
        raise BadInput(f"{origin} lacks LoRA keys: {shown(unpaired) or 'it holds none'}.")
    odd = [name for name, weight in named.items() if weight.dtype not in WEIGHT_TYPES]
    if odd:
        kind = str(named[odd[0]].dtype).removeprefix("torch.")
        raise BadInput(
            f"{origin} holds weights of type {kind}: {shown(odd)}; save them as float16, bfloat16 "
            "or float32."
        )
    return LoraFile(down, up, norms, _common_rank(down, up, origin), None)


def _common_rank(down: dict[str, torch.Tensor], up: dict[str, torch.Tensor], origin: str) -> int:
    flat = [name for name in down if down[name].ndim < 2 or up[name].ndim < 2]
    if flat:
        raise BadInput(f"{origin} holds LoRA weights that are no matrices: {shown(flat)}.")
    rank = next(iter(down.values())).shape[0]
    other = [name for name in down if {down[name].shape[0], up[name].shape[1]} != {rank}]
    if other:
        raise BadInput(
            f"{origin} mixes ranks: {shown(other)} differ from rank {rank} of {next(iter(down))}; "
            "use a LoRA of one rank."
        )
    empty = [name for name in down if not down[name].numel() or not up[name].numel()]
    if empty:
        raise BadInput(
            f"{origin} holds LoRA weights without values: {shown(empty)}; save it again."
        )
    return int(rank)


def _recorded_alpha(metadata: Mapping[str, str], file: Path) -> float | None:
    """Read alpha from the adapter's metadata; None where the file has none.

    Raises:
        BadInput: they are no JSON object, alpha is no positive number, or the LoRA is of a kind
            that hvkf does not read.
    """
    raw = metadata.get(ADAPTER_METADATA_KEY)
    if raw is None:
        return None
    where = f"{file} has metadata ({ADAPTER_METADATA_KEY}) that"
    try:
        adapter = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadInput(f"{where} are not JSON: save the LoRA again.") from None
    if not isinstance(adapter, dict):
        raise BadInput(f"{where} are not a JSON object: save the LoRA again.")
    variants = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "lora_bias")
    used = [name for name in variants if adapter.get(PREFIX + name)]
    if used:
        raise BadInput(
            f"{file} uses {', '.join(used)}, which hvkf does not read: use a plain LoRA of one "
            "rank and one alpha."
        )
    alpha = adapter.get(f"{PREFIX}lora_alpha")
    if alpha is None:
        return None
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not is_number or not 0 < alpha <= MAX_ALPHA or not math.isfinite(alpha):
        raise BadInput(
            f"{file} records the alpha {shortened(json.dumps(alpha))}: it must be a number above 0 "
            f"and at most {MAX_ALPHA}; save the LoRA again with the alpha that it was trained with."
        )
    return float(alpha)


def _adapter_metadata(contents: LoraFile, alpha: float) -> dict[str, Any]:
    config = lora_config(contents.rank, alpha, list(contents.down))
    return {
        PREFIX + key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True)


def _with_sorted_metadata(blob: bytes) -> bytes:
    # safetensors writes several metadata keys in an order that changes from process to process.
    header_end = LENGTH_BYTES + int.from_bytes(blob[:LENGTH_BYTES], "little")
    header = json.loads(blob[LENGTH_BYTES:header_end])
    metadata = dict(sorted(header.pop("__metadata__").items()))
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text + blob[header_end:]


def shown(names: list[str]) -> str:
    """List the first names of many."""
    more = f" and {len(names) - NUM_SHOWN_KEYS} more" if len(names) > NUM_SHOWN_KEYS else ""
    return ", ".join(shortened(name, MAX_SHOWN_KEY) for name in names[:NUM_SHOWN_KEYS]) + more

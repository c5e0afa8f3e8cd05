"""How far packed weights change what a transformer answers: `python -m benchmarks.packed_weights`.

On the tiny checkpoint with random weights and on hvkf-tiny, which is trained, in float32, against
the same transformer with all its bits. nf4 needs bitsandbytes, and is left out without it.
"""

import copy
import importlib.util
import tempfile
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel

from hvkf.demo import CHECKPOINT
from hvkf.model.frozen import hold_frozen
from hvkf.model.loading import load_transformer
from hvkf.model.speed import apply_speed
from hvkf.model.tiny import build_tiny_checkpoint
from hvkf.settings.rendering import RenderSpeed
from hvkf.settings.section import PackedFormat

FORMATS: tuple[PackedFormat, ...] = ("fp8", "int8", "nf4")
NUM_DRAWS = 8


def answer(transformer: HunyuanVideoTransformer3DModel, seed: int) -> torch.Tensor:
    """Let a transformer answer noise at a drawn noise level."""
    draws = torch.Generator().manual_seed(seed)
    config = transformer.config
    with torch.inference_mode():
        found: torch.Tensor = transformer(
            hidden_states=torch.randn((1, 32, 3, 8, 8), generator=draws),
            timestep=torch.rand(1, generator=draws) * 1000,
            encoder_hidden_states=torch.randn((1, 32, config["text_embed_dim"]), generator=draws),
            encoder_attention_mask=torch.ones((1, 32), dtype=torch.int64),
            pooled_projections=torch.randn((1, config["pooled_projection_dim"]), generator=draws),
            guidance=torch.full((1,), 6000.0),
            return_dict=False,
        )[0]
    return found


def relative_error(
    exact: HunyuanVideoTransformer3DModel, near: HunyuanVideoTransformer3DModel
) -> float:
    """Compare answers by the norm of their difference, over all draws."""
    answers = [(answer(exact, seed), answer(near, seed)) for seed in range(NUM_DRAWS)]
    apart = torch.cat([(one - other).flatten() for one, other in answers]).norm()
    return float(apart / torch.cat([one.flatten() for one, _ in answers]).norm())


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        sources = {
            "random tiny": build_tiny_checkpoint(Path(folder)),
            "hvkf-tiny": CHECKPOINT,
        }
        print("| weights | " + " | ".join(sources) + " |")
        transformers = {
            name: load_transformer(source, dtype=torch.float32) for name, source in sources.items()
        }
    rows: dict[str, list[str]] = {}
    for exact in transformers.values():
        cast = copy.deepcopy(exact)
        apply_speed(cast, RenderSpeed(fp8_layerwise=True), torch.device("cpu"))
        rows.setdefault("fp8_layerwise", []).append(f"{relative_error(exact, cast):.2%}")
        for stored in FORMATS:
            if stored == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
                continue
            packed = copy.deepcopy(exact)
            hold_frozen(packed, stored)
            rows.setdefault(stored, []).append(f"{relative_error(exact, packed):.2%}")
    for name, errors in rows.items():
        print(f"| {name} | " + " | ".join(errors) + " |")


if __name__ == "__main__":
    main()

"""What encoding captions together gains and changes: `python -m benchmarks.caption_batches`.

Captions of one to eight sentences, in batches of like lengths and in batches as they come: the time
for each caption against that of one alone, the tokens that are computed for one that counts, and
how far embeddings move. Of hvkf-tiny's encoders, and of one layer of Llama-3-8B's width with random
weights, where the arithmetic takes the time. One CPU thread where OMP_NUM_THREADS=1.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaModel

from benchmarks.timing import keep, median_ratio, took
from hvkf.captions import batch_by_length
from hvkf.demo import CHECKPOINT
from hvkf.estimate.parts import LLAMA
from hvkf.model.loading import TextEncoders, load_text_encoders
from hvkf.model.text import count_tokens, encode_prompts
from hvkf.shapes import render_clip

Batches = Sequence[tuple[str, ...]]
Case = tuple[int, str]
BATCH_SIZES = (4, 16)
ALONE = (1, "alone")
NUM_FOR_TINY, NUM_FOR_WIDE = 256, 32
LONGEST = 8
SEED = 0


def main() -> None:
    """Measure both encoders, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="the median of so many is taken")
    parser.add_argument("--results", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    tiny = load_text_encoders(CHECKPOINT, dtype=torch.float32)
    figures = [
        figure
        for name, encoders, number in (
            ("hvkf-tiny", tiny, NUM_FOR_TINY),
            ("Llama-3-8B, 1 layer", with_wide_llama(tiny), NUM_FOR_WIDE),
        )
        for figure in measure(name, encoders, write_captions(number), options.repeats)
    ]
    show(figures)
    keep(figures, options.results)


def write_captions(number: int) -> list[str]:
    """Join sentences about shapes into captions of different lengths, each once."""
    draw = random.Random(SEED)
    sentences = [render_clip(SEED, index, 1)[1] for index in range(number)]
    return [
        " ".join([sentence, *draw.choices(sentences, k=draw.randrange(LONGEST))])
        for sentence in dict.fromkeys(sentences)
    ]


def with_wide_llama(encoders: TextEncoders) -> TextEncoders:
    """Put one layer of Llama-3-8B's width in the place of Llama; the rest stays."""
    torch.manual_seed(SEED)
    vocabulary = encoders.text_encoder.config.vocab_size
    config = LlamaConfig(**{**LLAMA, "num_hidden_layers": 1, "vocab_size": vocabulary})
    return replace(encoders, text_encoder=LlamaModel(config).eval())


def measure(
    name: str, encoders: TextEncoders, captions: Sequence[str], repeats: int
) -> list[dict[str, Any]]:
    """Encode the same captions in batches of each size and order, turn by turn."""
    lengths = dict(zip(captions, count_tokens(encoders, captions), strict=True))
    cases: dict[Case, Batches] = {ALONE: [(caption,) for caption in captions]}
    for size in BATCH_SIZES:
        cases[size, "by length"] = list(dict.fromkeys(batch_by_length(lengths, size).values()))
        begins = range(0, len(captions), size)
        cases[size, "as they come"] = [tuple(captions[at : at + size]) for at in begins]
    found: dict[Case, dict[str, torch.Tensor]] = {}

    def encode_case(case: Case) -> None:
        found[case] = encode(encoders, cases[case])

    seconds: dict[Case, list[float]] = {case: [] for case in cases}
    for _ in range(repeats):
        for case in cases:
            seconds[case].append(took(lambda case=case: encode_case(case)).cpu_s)  # type: ignore[misc]
    return [
        {
            "encoders": name,
            "batch": size,
            "order": order,
            "time": median_ratio(seconds[size, order], seconds[ALONE]),
            "tokens": round(computed(batches, lengths) / sum(lengths.values()), 3),
            "difference": difference(found[size, order], found[ALONE]),
        }
        for (size, order), batches in cases.items()
    ]


def encode(encoders: TextEncoders, batches: Batches) -> dict[str, torch.Tensor]:
    """Encode batch after batch; each caption's Llama states, without padding."""
    states: dict[str, torch.Tensor] = {}
    for batch in batches:
        prompts = encode_prompts(encoders, batch, is_padded=False)
        counting = prompts.prompt_attention_mask.bool()
        for row, caption in enumerate(batch):
            states[caption] = prompts.prompt_embeds[row, counting[row]]
    return states


def computed(batches: Batches, lengths: dict[str, int]) -> int:
    """Count the tokens that go through Llama, padding included."""
    return sum(len(batch) * max(lengths[caption] for caption in batch) for batch in batches)


def difference(found: dict[str, torch.Tensor], alone: dict[str, torch.Tensor]) -> float:
    """Compare all embeddings, relative to their norm."""
    moved = torch.cat([found[caption] - alone[caption] for caption in alone])
    return float(moved.norm() / torch.cat(list(alone.values())).norm())


def show(figures: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("encoders", "batch", "order", "time per caption", "tokens computed", "moves by")
    for figure in figures:
        table.add_row(
            figure["encoders"],
            str(figure["batch"]),
            figure["order"],
            f"{figure['time']:.2f} x",
            f"{figure['tokens']:.2f} x",
            f"{figure['difference']:.1e}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaModel

from hvkf.errors import BadInput
from hvkf.model.loading import TextEncoders, load_text_encoders
from hvkf.model.text import (
    MAX_SEQUENCE_LENGTH,
    NUM_PREFIX_TOKENS,
    PROMPT_TEMPLATE,
    check_prefix,
    count_tokens,
    drop_unused_layers,
    encode_prompts,
)

from .conftest import TINY_FOLDER, relative_difference

GoldenReader = Callable[[str], dict[str, torch.Tensor]]
TOLERANCE = 2e-5


@pytest.mark.parametrize("index", range(3))
def test_embeddings_and_masks_equal_the_references(
    index: int, encoders: TextEncoders, golden: GoldenReader, golden_captions: list[str]
) -> None:
    expected = golden("text")
    prompt = encode_prompts(encoders, [golden_captions[index]])
    name = f"cap{index}"
    assert torch.equal(prompt.prompt_attention_mask, expected[f"{name}.prompt_attention_mask"])
    for field in ("prompt_embeds", "pooled_prompt_embeds"):
        difference = relative_difference(getattr(prompt, field), expected[f"{name}.{field}"])
        assert difference < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_the_layers_that_are_not_read_the_embeddings_have_the_whole_models_bits(
    dtype: torch.dtype, golden_captions: list[str]
) -> None:
    encoders = load_text_encoders(TINY_FOLDER, dtype=dtype)
    whole = LlamaModel.from_pretrained(TINY_FOLDER, subfolder="text_encoder", dtype=dtype).eval()
    assert len(encoders.text_encoder.layers) == len(whole.layers) - 2
    texts = [PROMPT_TEMPLATE.replace("{}", caption) for caption in golden_captions]
    tokens = encoders.tokenizer(
        texts,
        padding="longest",
        max_length=MAX_SEQUENCE_LENGTH + NUM_PREFIX_TOKENS,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        states = whole(**tokens, output_hidden_states=True).hidden_states
    prompt = encode_prompts(encoders, golden_captions, is_padded=False)
    assert torch.equal(prompt.prompt_embeds, states[-3][:, NUM_PREFIX_TOKENS:])


def test_a_llama_with_too_few_layers_is_refused() -> None:
    whole = LlamaModel.from_pretrained(TINY_FOLDER, subfolder="text_encoder")
    del whole.layers[1:]
    with pytest.raises(BadInput, match="text_encoder has 1 layers where HunyuanVideo needs"):
        drop_unused_layers(whole)


@pytest.mark.parametrize("index", range(3))
def test_token_ids_equal_the_references(
    index: int, encoders: TextEncoders, golden: GoldenReader, golden_captions: list[str]
) -> None:
    text = PROMPT_TEMPLATE.replace("{}", golden_captions[index])
    expected = golden("text")[f"cap{index}.llama_ids"].tolist()
    assert encoders.tokenizer(text).input_ids == expected


def test_clip_in_bf16_gives_the_references_pooled_embedding(
    golden: GoldenReader, golden_captions: list[str]
) -> None:
    encoders = load_text_encoders(TINY_FOLDER, dtype=torch.bfloat16)
    pooled = encode_prompts(encoders, golden_captions[:1]).pooled_prompt_embeds
    assert relative_difference(pooled, golden("text")["cap0.pooled_bf16_clip"]) < TOLERANCE


def test_a_batch_encodes_each_caption_as_alone(encoders: TextEncoders) -> None:
    captions = ["A red circle.", "", "Braces {} and {0} stay as they are."]
    together = encode_prompts(encoders, captions)
    for row, caption in enumerate(captions):
        alone = encode_prompts(encoders, [caption])
        assert torch.equal(alone.prompt_attention_mask[0], together.prompt_attention_mask[row])
        counting = alone.prompt_attention_mask[0].bool()
        assert (
            relative_difference(
                together.prompt_embeds[row, counting], alone.prompt_embeds[0, counting]
            )
            < TOLERANCE
        )


def test_tokens_are_counted_as_they_are_encoded(encoders: TextEncoders) -> None:
    captions = ["", "A circle.", "Braces {} and {0} stay as they are.", "and on " * 300]
    counts = count_tokens(encoders, captions)
    for caption, count in zip(captions, counts, strict=True):
        alone = encode_prompts(encoders, [caption], is_padded=False)
        assert count == NUM_PREFIX_TOKENS + alone.prompt_embeds.shape[1]
    assert counts[-1] == NUM_PREFIX_TOKENS + MAX_SEQUENCE_LENGTH
    assert count_tokens(encoders, []) == []


def test_the_embeddings_can_be_cast_while_the_mask_stays(encoders: TextEncoders) -> None:
    prompt = encode_prompts(encoders, ["A circle."], dtype=torch.bfloat16)
    assert prompt.prompt_embeds.dtype == prompt.pooled_prompt_embeds.dtype == torch.bfloat16
    assert prompt.to(dtype=torch.float16).prompt_attention_mask.dtype == torch.int64


def test_a_shorter_sequence_length_keeps_the_captions_beginning(encoders: TextEncoders) -> None:
    short = encode_prompts(encoders, ["A red circle moves to the right."], max_sequence_length=4)
    long = encode_prompts(encoders, ["A red circle moves to the right."])
    assert short.prompt_embeds.shape[1] == 4
    assert relative_difference(short.prompt_embeds, long.prompt_embeds[:, :4]) < TOLERANCE


def test_a_tokenizer_that_does_not_fit_the_crop_is_refused(encoders: TextEncoders) -> None:
    with pytest.raises(BadInput, match="crops 95"):
        check_prefix(encoders.tokenizer_2)

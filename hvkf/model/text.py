"""Captions to the embeddings that condition HunyuanVideo: Llama's hidden states and CLIP's pooled.

Method: HunyuanVideo (arXiv:2412.03603), as in diffusers' HunyuanVideoPipeline and the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch

from hvkf.errors import BadInput

if TYPE_CHECKING:
    from transformers import LlamaModel

    from hvkf.model.loading import TextEncoders

PROMPT_TEMPLATE = (
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Describe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes "
    "of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)
# Tokens before the caption, with the beginning-of-text token; their hidden states are cut off.
NUM_PREFIX_TOKENS = 95
NUM_UNUSED_LAYERS = 2
"""Llama's last layers, whose output HunyuanVideo does not read."""
MAX_SEQUENCE_LENGTH = 256
CLIP_SEQUENCE_LENGTH = 77


@dataclass(frozen=True)
class PromptEmbeds:
    """What the transformer is told about the captions of a batch.

    Attributes:
        prompt_embeds: Llama's hidden states, [B, L, D].
        prompt_attention_mask: 1 where a token counts, [B, L], int64 or bool; never all 0 in a row.
        pooled_prompt_embeds: CLIP's pooled output, [B, P].
    """

    prompt_embeds: torch.Tensor
    prompt_attention_mask: torch.Tensor
    pooled_prompt_embeds: torch.Tensor

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Move to a device and cast the embeddings; the mask keeps its type."""
        return type(self)(
            self.prompt_embeds.to(device=device, dtype=dtype),
            self.prompt_attention_mask.to(device=device),
            self.pooled_prompt_embeds.to(device=device, dtype=dtype),
        )


@torch.inference_mode()
def encode_prompts(
    encoders: "TextEncoders",
    captions: Sequence[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    max_sequence_length: int = MAX_SEQUENCE_LENGTH,
    *,
    is_padded: bool = True,
) -> PromptEmbeds:
    """Encode captions into what the transformer reads.

    Args:
        encoders: The checkpoint's tokenizers and text encoders; they run where they lie.
        captions: B captions, taken as they are (see `hvkf.captions.clean_caption`); the empty
            caption is allowed.
        device: Where the results go; left out, where the encoders are.
        dtype: Type of the embeddings; left out, Llama's.
        max_sequence_length: Llama tokens kept of each caption (L).
        is_padded: Whether to compute padding up to L; left out, L is the longest caption's. Llama
            looks back only, so that tokens that count are the same but for rounding.

    Returns:
        Embeddings of B rows and L tokens. A longer caption loses its end.
    """
    embeds, mask = _llama_embeds(encoders, captions, max_sequence_length, is_padded)
    pooled = _clip_embeds(encoders, captions)
    target_dtype = dtype or embeds.dtype
    return PromptEmbeds(
        embeds.to(device=device, dtype=target_dtype),
        mask.to(device=device),
        pooled.to(device=device, dtype=target_dtype),
    )


def _llama_embeds(
    encoders: "TextEncoders", captions: Sequence[str], max_sequence_length: int, is_padded: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = encoders.tokenizer(
        _in_template(captions),
        max_length=max_sequence_length + NUM_PREFIX_TOKENS,
        padding="max_length" if is_padded else "longest",
        truncation=True,
        return_tensors="pt",
        return_attention_mask=True,
    )
    encoder_device = encoders.text_encoder.device
    ids, mask = tokens.input_ids.to(encoder_device), tokens.attention_mask.to(encoder_device)
    hidden = encoders.text_encoder(ids, mask, use_cache=False).last_hidden_state
    # A view would keep the template's states for as long as the caption's are kept.
    return hidden[:, NUM_PREFIX_TOKENS:].clone(), mask[:, NUM_PREFIX_TOKENS:]


def _in_template(captions: Sequence[str]) -> list[str]:
    """Put captions in their place; `format` would trip over their braces."""
    return [PROMPT_TEMPLATE.replace("{}", caption) for caption in captions]


def count_tokens(encoders: "TextEncoders", captions: Sequence[str]) -> list[int]:
    """Count the Llama tokens that `encode_prompts` takes of each caption, template included."""
    if not captions:
        return []
    limit = MAX_SEQUENCE_LENGTH + NUM_PREFIX_TOKENS
    found = encoders.tokenizer(_in_template(captions), max_length=limit, truncation=True)
    return [len(ids) for ids in found.input_ids]


def drop_unused_layers(llama: "LlamaModel") -> None:
    """Leave out what comes after the hidden state that HunyuanVideo reads: two layers and the norm.

    The last hidden state is then hidden_states[-3] of the whole model.

    Raises:
        BadInput: it has fewer layers.
    """
    num_used = len(llama.layers) - NUM_UNUSED_LAYERS
    if num_used < 0:
        raise BadInput(
            f"The checkpoint's text_encoder has {len(llama.layers)} layers where HunyuanVideo "
            f"needs at least {NUM_UNUSED_LAYERS}: take that of hunyuanvideo-community/HunyuanVideo."
        )
    del llama.layers[num_used:]
    llama.config.num_hidden_layers = num_used
    llama.set_submodule("norm", torch.nn.Identity())


def _clip_embeds(encoders: "TextEncoders", captions: Sequence[str]) -> torch.Tensor:
    tokens = encoders.tokenizer_2(
        list(captions),
        max_length=CLIP_SEQUENCE_LENGTH,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    output = encoders.text_encoder_2(tokens.input_ids.to(encoders.text_encoder_2.device))
    pooled: torch.Tensor = output.pooler_output
    return pooled


def num_prefix_tokens(tokenizer: object) -> int:
    """Count the tokens that a tokenizer makes of the template before the caption."""
    prefix = PROMPT_TEMPLATE.partition("{}")[0]
    return len(tokenizer(prefix).input_ids)  # type: ignore[operator]


def check_prefix(tokenizer: object) -> None:
    """Refuse a tokenizer with which the crop at 95 tokens would cut into the caption.

    Raises:
        BadInput: the template's prefix has another number of tokens.
    """
    count = num_prefix_tokens(tokenizer)
    if count != NUM_PREFIX_TOKENS:
        raise BadInput(
            f"The checkpoint's tokenizer makes {count} tokens of the prompt template where "
            f"HunyuanVideo crops {NUM_PREFIX_TOKENS}: take the tokenizer of "
            "hunyuanvideo-community/HunyuanVideo."
        )

"""Tokenizers small enough to make in a moment, in the formats of Llama 3's and CLIP's.

They are trained on a few sentences; the Llama one makes exactly the 95 tokens of the prompt
template's prefix that HunyuanVideo crops.
"""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    trainers,
)
from transformers import CLIPTokenizer, LlamaTokenizerFast
from transformers.models.clip.tokenization_clip import bytes_to_unicode

from hvkf.errors import HvkfError
from hvkf.model.text import (
    CLIP_SEQUENCE_LENGTH,
    NUM_PREFIX_TOKENS,
    PROMPT_TEMPLATE,
    num_prefix_tokens,
)

CAPTIONS = (
    "A red circle moves from left to right over a plain blue background.",
    "A green square grows while a yellow triangle turns slowly at the centre of the frame.",
    "A white rabbit wakes up in a green meadow and looks at three butterflies.",
    "The camera follows a man who walks along a quiet street at night, lit by neon signs.",
    "Two people ride bicycles through a forest, and the light falls between the trees.",
)
LLAMA_SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<pad>",
)
# Llama 3's own splitting of text into words.
LLAMA_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# For the plain text above only; the tokenizer itself splits as CLIP's does.
CLIP_WORDS = r"[a-z]+|[0-9]|[^a-z0-9\s]+"
PRIVATE_USE = 0xE000
CLIP_START, CLIP_END, CLIP_WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
NUM_CLIP_MERGES = 400
UNLIMITED = 1 << 16

Merges = list[tuple[str, str]]


def make_llama_tokenizer() -> LlamaTokenizerFast:
    """Make a byte-level BPE tokenizer like Llama 3's with a few hundred tokens.

    Raises:
        HvkfError: no vocabulary size gives the template's prefix 95 tokens.
    """
    merges = _train(_llama_pieces(), [PROMPT_TEMPLATE, *CAPTIONS], _byte_letters())
    fewest, most = 0, len(merges)
    # A further merge never adds tokens, so the number of merges can be halved in on.
    while fewest < most:
        middle = (fewest + most) // 2
        if num_prefix_tokens(_llama_tokenizer(merges[:middle])) > NUM_PREFIX_TOKENS:
            fewest = middle + 1
        else:
            most = middle
    tokenizer = _llama_tokenizer(merges[:fewest])
    count = num_prefix_tokens(tokenizer)
    if count != NUM_PREFIX_TOKENS:
        raise HvkfError(
            f"No tiny tokenizer makes {NUM_PREFIX_TOKENS} tokens of the prompt template's prefix "
            f"(nearest: {count}): change the sentences that it is trained on."
        )
    return tokenizer


def make_clip_tokenizer() -> CLIPTokenizer:
    """Make a lower-case BPE tokenizer like CLIP's with about 900 tokens."""
    letters = list(bytes_to_unicode().values())
    last_letters = {letter: chr(PRIVATE_USE + index) for index, letter in enumerate(letters)}
    words = [
        word[:-1] + last_letters[word[-1]]
        for text in (PROMPT_TEMPLATE, *CAPTIONS)
        for word in re.findall(CLIP_WORDS, text.lower())
    ]
    # The trainer's own word endings make another vocabulary in each process; letters do not.
    pieces = pre_tokenizers.WhitespaceSplit()
    trained = _train(pieces, words, [*letters, *last_letters.values()])
    endings = {ord(mark): letter + CLIP_WORD_END for letter, mark in last_letters.items()}
    merges = [(left.translate(endings), right.translate(endings)) for left, right in trained]
    merges = merges[:NUM_CLIP_MERGES]
    tokens = [*letters, *(letter + CLIP_WORD_END for letter in letters)]
    tokens += ["".join(merge) for merge in merges]
    tokens += [CLIP_START, CLIP_END]
    with tempfile.TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocab_file.write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
        lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
        merges_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return CLIPTokenizer(
            str(vocab_file), str(merges_file), model_max_length=CLIP_SEQUENCE_LENGTH
        )


def _train(pieces: Any, texts: list[str], alphabet: list[str]) -> Merges:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pieces
    trainer = trainers.BpeTrainer(
        vocab_size=UNLIMITED,
        min_frequency=1,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]


def _llama_pieces() -> Any:
    words = pre_tokenizers.Split(Regex(LLAMA_WORDS), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([words, letters])


def _byte_letters() -> list[str]:
    return sorted(bytes_to_unicode().values())


def _llama_tokenizer(merges: Merges) -> LlamaTokenizerFast:
    tokens = [*LLAMA_SPECIAL_TOKENS, *_byte_letters()]
    tokens += ["".join(merge) for merge in merges]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = _llama_pieces()
    backend.decoder = decoders.ByteLevel()
    return LlamaTokenizerFast(
        tokenizer_object=backend,
        bos_token=LLAMA_SPECIAL_TOKENS[0],
        eos_token=LLAMA_SPECIAL_TOKENS[1],
        unk_token=None,
        pad_token=LLAMA_SPECIAL_TOKENS[5],
        additional_special_tokens=list(LLAMA_SPECIAL_TOKENS[2:5]),
        add_bos_token=True,
        add_eos_token=False,
        legacy=False,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        model_max_length=8192,
    )

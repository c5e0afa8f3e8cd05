import json
from pathlib import Path

import pytest
import torch

from hvkf.errors import BadInput, HvkfError
from hvkf.model import tiny_text
from hvkf.model.loading import load_text_encoders, load_transformer, load_vae
from hvkf.model.text import NUM_PREFIX_TOKENS, encode_prompts, num_prefix_tokens
from hvkf.model.tiny import build_tiny_checkpoint
from hvkf.model.tiny_text import make_llama_tokenizer

from .conftest import TINY_FOLDER


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_the_checkpoint_has_the_golden_ones_layout_and_sizes(built: Path) -> None:
    assert bytes_of(built).keys() == bytes_of(TINY_FOLDER).keys()
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        config, golden = (
            json.loads((folder / part / "config.json").read_text())
            for folder in (built, TINY_FOLDER)
        )
        of_tokenizer = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}
        assert {k: v for k, v in config.items() if k not in of_tokenizer} == {
            k: v for k, v in golden.items() if k not in of_tokenizer
        }
    assert sum(map(len, bytes_of(built).values())) < 2_000_000


def test_the_same_seed_gives_the_same_bytes_in_another_process(
    built: Path, made_elsewhere: Path
) -> None:
    assert bytes_of(built) == bytes_of(made_elsewhere / "checkpoint")


def test_another_seed_gives_other_weights_and_the_same_tokenizers(
    built: Path, tmp_path: Path
) -> None:
    one, other = bytes_of(built), bytes_of(build_tiny_checkpoint(tmp_path, seed=1))
    changed = {name for name in one if one[name] != other[name]}
    assert changed == {name for name in one if name.endswith(".safetensors")}


def test_building_leaves_the_global_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    build_tiny_checkpoint(tmp_path)
    assert torch.equal(torch.rand(1), expected)


def test_its_captions_are_told_apart(built: Path) -> None:
    encoders = load_text_encoders(built, dtype=torch.float32)
    captions = ["A red circle moves.", "A blue circle moves.", ""]
    prompt = encode_prompts(encoders, captions)
    assert prompt.prompt_attention_mask.sum(dim=1).tolist() == [
        len(encoders.tokenizer(caption).input_ids) for caption in captions
    ]
    distances = torch.cdist(prompt.pooled_prompt_embeds, prompt.pooled_prompt_embeds)
    assert (distances[~torch.eye(3, dtype=torch.bool)] > 0.1).all()


def test_the_templates_prefix_has_the_tokens_that_are_cropped(built: Path) -> None:
    encoders = load_text_encoders(built, dtype=torch.float32)
    assert num_prefix_tokens(encoders.tokenizer) == NUM_PREFIX_TOKENS
    text = "A rabbit, «caméra» 42!"
    assert encoders.tokenizer.decode(encoders.tokenizer(text).input_ids[1:]) == text


def test_a_text_that_cannot_give_95_tokens_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_text, "NUM_PREFIX_TOKENS", 5)
    with pytest.raises(HvkfError, match="nearest"):
        make_llama_tokenizer()


def test_sizes_can_be_chosen_and_text_dimensions_follow(tmp_path: Path) -> None:
    folder = build_tiny_checkpoint(
        tmp_path,
        transformer={"num_layers": 2, "num_single_layers": 1},
        vae={"block_out_channels": (4, 4, 8, 8), "norm_num_groups": 2},
        llama={"hidden_size": 16},
        clip={"hidden_size": 12},
    )
    model = load_transformer(folder, dtype=torch.float32)
    assert len(model.transformer_blocks) == 2
    assert model.config["text_embed_dim"] == 16
    assert model.config["pooled_projection_dim"] == 12
    assert load_vae(folder, dtype=torch.float32).config["norm_num_groups"] == 2


def test_text_dimensions_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="text_embed_dim"):
        build_tiny_checkpoint(tmp_path, transformer={"text_embed_dim": 8})

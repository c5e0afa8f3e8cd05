import hashlib
import json
import os
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from hvkf.errors import BadInput
from hvkf.model.lora_file import FILE_NAME, read_lora, save_lora

from .conftest import GOLDEN_FOLDER

REFERENCE_FILE = GOLDEN_FOLDER / "lora_r4_a8.sft"


def small_lora(rank: int = 2) -> dict[str, torch.Tensor]:
    return {
        "proj_out.lora_A.weight": torch.randn(rank, 8),
        "proj_out.lora_B.weight": torch.randn(6, rank),
    }


def metadata_of(file: Path) -> dict[str, str]:
    with safetensors.safe_open(str(file), framework="pt") as opened:
        metadata: dict[str, str] = opened.metadata()
        return metadata


def test_the_references_file_is_read_whole() -> None:
    contents = read_lora(REFERENCE_FILE)
    expected = json.loads((GOLDEN_FOLDER / "lora_keys.json").read_text())["keys"]
    shapes = {f"transformer.{name}": list(w.shape) for name, w in contents.weights.items()}
    assert shapes == expected
    assert (contents.rank, contents.alpha, contents.norms) == (4, None, {})


def test_a_saved_lora_keeps_its_alpha_and_weights(tmp_path: Path) -> None:
    """Fault 8 of the reference: alpha was not saved."""
    weights = small_lora()
    file = save_lora(weights, tmp_path, alpha=8)
    contents = read_lora(tmp_path)
    assert file == tmp_path / FILE_NAME
    assert contents.alpha == 8
    assert contents.weights.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(contents.weights[name], weight)


def test_a_saved_lora_keeps_its_trained_norms(tmp_path: Path) -> None:
    """Fault 8 of the reference: the final file lacked them."""
    norms = {"single_transformer_blocks.0.attn.norm_q.weight": torch.randn(4)}
    save_lora({**small_lora(), **norms}, tmp_path / "lora.sft", alpha=2)
    contents = read_lora(tmp_path / "lora.sft")
    assert contents.norms.keys() == norms.keys()


def test_norms_that_the_reference_prefixed_twice_are_read(tmp_path: Path) -> None:
    name = "transformer_blocks.0.attn.norm_added_k.weight"
    tensors = {f"transformer.{key}": value for key, value in small_lora().items()}
    save_file({**tensors, f"transformer.transformer.{name}": torch.ones(4)}, tmp_path / "a.sft")
    assert list(read_lora(tmp_path / "a.sft").norms) == [name]


def test_the_metadata_is_diffusers_and_says_what_the_input_is(tmp_path: Path) -> None:
    file = save_lora(small_lora(), tmp_path, alpha=8, extra={"step": 500})
    metadata = metadata_of(file)
    adapter = json.loads(metadata["lora_adapter_metadata"])
    assert adapter["transformer.r"] == 2
    assert adapter["transformer.lora_alpha"] == 8
    assert adapter["transformer.target_modules"] == ["proj_out"]
    assert json.loads(metadata["hvkf"]) == {"format_version": 1, "input_channels": 32, "step": 500}
    assert metadata["format"] == "pt"


def test_another_process_writes_equal_bytes(tmp_path: Path, made_elsewhere: Path) -> None:
    weights = read_lora(REFERENCE_FILE).weights
    here = save_lora(weights, tmp_path, alpha=8, extra={"run": "r", "step": 3})
    digests = {
        hashlib.sha256(f.read_bytes()).hexdigest() for f in (here, made_elsewhere / FILE_NAME)
    }
    assert len(digests) == 1


def test_the_tensors_bytes_are_aligned_and_as_safetensors_wrote_them(tmp_path: Path) -> None:
    file = save_lora(small_lora(), tmp_path, alpha=8)
    header_bytes = int.from_bytes(file.read_bytes()[:8], "little")
    assert header_bytes % 8 == 0
    assert load_file(file).keys() == {
        "transformer.proj_out.lora_A.weight",
        "transformer.proj_out.lora_B.weight",
    }


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt", ".pth"])
def test_pickles_are_refused_with_how_to_convert_them(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"lora{suffix}"
    file.write_bytes(b"\x80\x04.")
    with pytest.raises(BadInput, match="save_file"):
        read_lora(file)


def test_absent_ambiguous_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no LoRA file"):
        read_lora(tmp_path / "missing.sft")
    with pytest.raises(BadInput, match="holds 0 LoRA files"):
        read_lora(tmp_path)
    whole = REFERENCE_FILE.read_bytes()
    (tmp_path / "damaged.sft").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="not a readable safetensors"):
        read_lora(tmp_path)
    (tmp_path / "another.sft").write_bytes(whole)
    with pytest.raises(BadInput, match="holds 2 LoRA files"):
        read_lora(tmp_path)


def test_unpaired_keys_are_named(tmp_path: Path) -> None:
    weights = small_lora()
    del weights["proj_out.lora_B.weight"]
    save_file(weights, tmp_path / "a.sft")
    with pytest.raises(BadInput, match=r"lacks LoRA keys: proj_out\.lora_B\.weight"):
        read_lora(tmp_path / "a.sft")


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    save_file({**small_lora(), "img_attn_qkv.alpha": torch.ones(1)}, tmp_path / "a.sft")
    with pytest.raises(BadInput, match=r"img_attn_qkv\.alpha"):
        read_lora(tmp_path / "a.sft")


def test_several_ranks_in_one_file_are_refused(tmp_path: Path) -> None:
    other = {f"x.{name}": weight for name, weight in small_lora(rank=3).items()}
    save_file({**small_lora(), **other}, tmp_path / "a.sft")
    with pytest.raises(BadInput, match=r"mixes ranks: x\.proj_out"):
        read_lora(tmp_path / "a.sft")


def test_a_lora_with_another_scaling_rule_is_refused(tmp_path: Path) -> None:
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.use_rslora": True})}
    save_file(small_lora(), tmp_path / "a.sft", metadata=metadata)
    with pytest.raises(BadInput, match="use_rslora"):
        read_lora(tmp_path / "a.sft")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ("no JSON", "are not JSON"),
        ("[" * 100_000, "are not JSON"),
        ("[]", "are not a JSON object"),
        *(
            (f'{{"transformer.lora_alpha": {alpha}}}', r"records the alpha .* a number above 0")
            for alpha in ('"8"', "[8]", "true", "0", "-8", "NaN", "Infinity", "9" * 400)
        ),
    ],
)
def test_metadata_that_say_nothing_are_refused_in_a_sentence(
    tmp_path: Path, metadata: str, words: str
) -> None:
    save_file(small_lora(), tmp_path / "a.sft", metadata={"lora_adapter_metadata": metadata})
    with pytest.raises(BadInput, match=rf"a\.sft .*{words}") as caught:
        read_lora(tmp_path / "a.sft")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8, torch.bool])
def test_weights_of_a_type_that_is_not_used_are_refused(tmp_path: Path, kind: torch.dtype) -> None:
    weights = {name: weight.to(kind) for name, weight in small_lora().items()}
    save_file(weights, tmp_path / "a.sft")
    with pytest.raises(BadInput, match=r"of type (float8|int8|bool).*save them as float16"):
        read_lora(tmp_path / "a.sft")


def test_a_rank_of_nought_is_refused(tmp_path: Path) -> None:
    save_file(small_lora(rank=0), tmp_path / "a.sft")
    with pytest.raises(BadInput, match="weights without values"):
        read_lora(tmp_path / "a.sft")


def test_a_key_of_any_length_and_letters_fits_into_the_message(tmp_path: Path) -> None:
    save_file({**small_lora(), "\x1b[2J" + "x" * 5000: torch.ones(1)}, tmp_path / "a.sft")
    with pytest.raises(BadInput, match="neither LoRA") as caught:
        read_lora(tmp_path / "a.sft")
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_a_named_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.sft")
    with pytest.raises(BadInput, match="no LoRA file"):
        read_lora(tmp_path / "a.sft")

"""Damaged LoRA files, and what a manifest's `lora` cell or a setting may name."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hvkf.loras import local_lora_file, resolve_lora
from hvkf.model.lora_file import read_lora
from hvkf.storage import FolderStore
from tests.fuzz.bounds import fuzzed, in_bounds
from tests.fuzz.mutations import mutated

DOWN, UP = "transformer.proj_out.lora_A.weight", "transformer.proj_out.lora_B.weight"
numbers = st.sampled_from([0, 1, -1, 2, 3, 2**31, 2**63, 2**64, 10**400, 0.5, float("nan"), None])
values = st.recursive(
    numbers | st.text(max_size=5) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


def header(alpha: object = 2) -> dict[str, Any]:
    """The header of a valid file of rank 2, whose tensors take 112 bytes."""
    return {
        "__metadata__": {
            "format": "pt",
            "lora_adapter_metadata": json.dumps({"transformer.lora_alpha": alpha}),
        },
        DOWN: {"dtype": "F32", "shape": [2, 8], "data_offsets": [0, 64]},
        UP: {"dtype": "F32", "shape": [6, 2], "data_offsets": [64, 112]},
    }


def safetensors(header: object, num_bytes: int = 112, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return size.to_bytes(8, "little") + text + bytes(num_bytes)


def with_metadata(text: str) -> bytes:
    return safetensors({**header(), "__metadata__": {"lora_adapter_metadata": text}})


@st.composite
def odd_headers(draw: st.DrawFn) -> bytes:
    """A valid header with one or two of its values replaced."""
    made = header()
    for _ in range(draw(st.integers(1, 2))):
        tensor = draw(st.sampled_from([DOWN, UP]))
        change = draw(st.sampled_from(["field", "tensor", "name", "metadata", "adapter"]))
        if change == "field" and isinstance(made.get(tensor), dict):
            field = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
            types = st.sampled_from(["F16", "BF16", "I8", "F8_E4M3", "F64", "BOOL", "U64", "C64"])
            lists = st.lists(numbers, max_size=4)
            made[tensor][field] = draw(values | types if field == "dtype" else values | lists)
        elif change == "tensor":
            made[tensor] = draw(values)
        elif change == "name":
            made[draw(st.text(max_size=4)) + tensor] = made.pop(tensor, None)
        elif change == "metadata":
            made["__metadata__"] = draw(values)
        else:
            made["__metadata__"] = {"lora_adapter_metadata": draw(st.text(max_size=9))}
    return safetensors(made, draw(st.sampled_from([0, 111, 112, 113])))


adapters = st.builds(
    lambda value, key: with_metadata(json.dumps({f"transformer.{key}": value})),
    values,
    st.sampled_from(["lora_alpha", "use_rslora", "rank_pattern", "r"]),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras")


@fuzzed(1600)
@given(data=mutated(st.just(safetensors(header()))) | odd_headers() | adapters)
@example(data=safetensors(header()))
@example(data=with_metadata("no JSON"))
@example(data=with_metadata("[]"))
@example(data=with_metadata("[" * 100_000))
@example(data=with_metadata('{"transformer.lora_alpha": "eight"}'))
@example(data=with_metadata('{"transformer.lora_alpha": ' + "9" * 400 + "}"))
@example(data=with_metadata('{"transformer.lora_alpha": ' + "9" * 5000 + "}"))
@example(data=with_metadata('{"transformer.lora_alpha": NaN}'))
@example(data=with_metadata('{"transformer.lora_alpha": [8]}'))
@example(data=safetensors(header(), length=2**63))
@example(data=safetensors(header(), length=3))
@example(data=safetensors({**header(), DOWN + "x" * 5000: header()[DOWN]}))
@example(data=safetensors({**header(), UP: {**header()[UP], "data_offsets": [0, 48]}}))
@example(data=safetensors({**header(), UP: {**header()[UP], "dtype": "F8_E4M3", "shape": [6, 8]}}))
@example(data=safetensors({**header(), UP: {**header()[UP], "dtype": "I32"}}))
@example(data=safetensors({**header(), UP: {**header()[UP], "shape": [2**40, 2**40]}}))
def test_a_damaged_lora_is_read_or_refused(folder: Path, data: bytes) -> None:
    file = folder / "lora.safetensors"
    file.write_bytes(data)
    with in_bounds():
        lora = read_lora(file)
        assert lora.rank >= 1
        assert lora.alpha is None or 0 < lora.alpha < float("inf")
        assert all(weight.is_floating_point() for weight in lora.weights.values())


schemes = st.sampled_from(["", "run:", "registry:", "workspace:", "~", "~bob/", "/", "./", "s3://"])
names = st.text(st.characters(), max_size=10) | st.sampled_from(
    ["x" * 300, "x" * 5000, "\0", "\ud800", "..", ".", "loop.sft", "folder", "pipe.sft", "a.sft"]
)
specs = st.builds(
    lambda scheme, parts, end: scheme + "/".join(parts) + end,
    schemes,
    st.lists(names, max_size=3),
    st.sampled_from(["", "@1", "@" + "9" * 5000, "/step-00000001", ".sft", ".safetensors"]),
)


@fuzzed(800)
@given(spec=specs)
@example(spec="~bob/x")
@example(spec="x" * 300)
@example(spec="/".join(["x" * 200] * 30))
@example(spec="workspace:" + "x" * 300)
@example(spec="run:" + "x" * 300)
@example(spec="registry:a@" + "9" * 5000)
@example(spec="a\0b")
def test_an_odd_name_of_a_lora_is_found_or_refused(folder: Path, spec: str) -> None:
    if not (folder / "loop.sft").is_symlink():
        (folder / "loop.sft").symlink_to("loop.sft")
        (folder / "folder").mkdir()
    with in_bounds():
        local_lora_file(resolve_lora(spec, FolderStore(folder)), FolderStore(folder))

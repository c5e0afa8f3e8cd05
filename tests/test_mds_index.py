"""The index of MDS shards: what is not as `streaming` writes it is one sentence."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from hvkf.errors import BadInput
from hvkf.mds_index import ENCODED_BYTES, MdsShard, parse_index
from hvkf.model.latent_columns import NDARRAY_OF, packed_columns, whole_columns
from hvkf.records import digest
from hvkf.stages.cache_group import COLUMNS as SCENE_COLUMNS
from tests.reference_caches import BY_THE_REFERENCE, LATENT_COLUMNS, VIDEO_COLUMNS

Change = Callable[[dict[str, Any]], object]


def index_of_the_reference() -> dict[str, Any]:
    index: dict[str, Any] = json.loads(
        (BY_THE_REFERENCE / "32x32x5_00" / "index.json").read_bytes()
    )
    return index


def parse_changed(change: Change) -> tuple[MdsShard, ...]:
    index = index_of_the_reference()
    change(index["shards"][0])
    return parse_index(json.dumps(index).encode(), "x/index.json")


def test_the_references_index_is_read_and_keeps_its_identity() -> None:
    index = index_of_the_reference()
    (shard,) = parse_index(json.dumps(index).encode(), "x")
    assert shard.model_dump(mode="json") == index["shards"][0]
    assert digest(shard.model_dump(mode="json")) == digest(index["shards"][0])
    assert (shard.samples, shard.stored.basename) == (2, "shard.00000.mds.zstd")


def test_every_encoding_that_is_written_is_read() -> None:
    layouts = [layout(s) for s in NDARRAY_OF for layout in (whole_columns, packed_columns)]
    ours = [SCENE_COLUMNS, *layouts]
    written = {encoding for columns in ours for encoding in columns.values()}
    by_the_reference = {*LATENT_COLUMNS.values(), *VIDEO_COLUMNS.values()}
    assert written | by_the_reference == set(ENCODED_BYTES)


def test_fixed_sizes_are_those_of_the_format() -> None:
    from streaming.base.format.mds.encodings import get_mds_encoded_size

    assert {name: get_mds_encoded_size(name) for name in ENCODED_BYTES} == ENCODED_BYTES


@pytest.mark.parametrize(
    "encoding",
    [
        *("pkl", "PKL", "pkl:", "pkl ", "json", "pil", "jpeg", "jpeg_array", "jpegarray", "png"),
        *("list[pil]", "list[jpeg]", "list[png]", "list[pkl]", "str_int", "str_decimal", "int"),
        *("ndarray:object", "ndarray:", "ndarray:float32:4096,4096", "ndarray:float64", "NDARRAY"),
    ],
)
def test_no_other_encoding_is_read(encoding: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_changed(lambda shard: shard["column_encodings"].__setitem__(2, encoding))
    assert str(caught.value) == (
        f"x/index.json is refused: column 'pooled_prompt_embeds' is stored as {encoding!r}; "
        f"allowed are {', '.join(ENCODED_BYTES)}."
    )
    assert len(str(caught.value)) <= 220


FIELDS = sorted(set(index_of_the_reference()["shards"][0]) - {"size_limit"})
WRONG: list[object] = ["missing", None, -1, 2.5, "x", True, [None], {}, 1 << 80]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", WRONG)
def test_a_field_of_another_type_is_one_sentence(field: str, value: Any) -> None:
    def change(shard: dict[str, Any]) -> None:
        if value == "missing":
            del shard[field]
        else:
            shard[field] = value

    with pytest.raises(BadInput, match=r"^x/index\.json is not an index of MDS shards") as caught:
        parse_changed(change)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(format="csv"), r"shards\.0\.format \('csv'\)"),
        (lambda s: s.update(version=3), r"shards\.0\.version"),
        (lambda s: s.update(more=1), r"shards\.0\.more"),
        (lambda s: s["column_names"].pop(), "as many column_names, column_encodings"),
        (lambda s: s.update(column_names=["a"] * 5), "two columns have one name"),
        (lambda s: s["column_sizes"].__setitem__(0, 8), "another size than that"),
        (lambda s: s.update(compression=None), "compression and zip_data must be there together"),
        (lambda s: s.update(zip_data=None), "compression and zip_data must be there together"),
        (lambda s: s.update(compression="lzma"), r"compression \('lzma'\)"),
        (lambda s: s.update(samples=10_000), "10000 samples do not fit into raw_data"),
        (lambda s: s.update(samples=2_000), "2000 samples do not fit into zip_data"),
        (lambda s: s["raw_data"].update(bytes=1 << 33), r"raw_data\.bytes"),
        (lambda s: s["raw_data"].update(bytes=80_000_000), "more than 1000 times as many"),
    ],
)
def test_what_does_not_fit_is_said(change: Change, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        parse_changed(change)


def test_two_shards_of_one_file_are_refused() -> None:
    index = index_of_the_reference()
    index["shards"] *= 2
    with pytest.raises(BadInput, match="two shards have one file"):
        parse_index(json.dumps(index).encode(), "x")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b"1" * 100_000, b'{"version": 2}', b"null"]
)
def test_what_is_no_index_is_one_sentence(data: bytes) -> None:
    with pytest.raises(BadInput, match="x is not an index of MDS shards") as caught:
        parse_index(data, "x")
    assert len(str(caught.value)) < 600


def test_millions_of_errors_are_one_of_them() -> None:
    """All of them were kept: 2 GB for 300 KB, and an end by the kernel for 30 MB."""
    data = b'{"version": 2, "shards": [' + b"{}," * 5_000_000 + b"{}]}"
    with pytest.raises(BadInput, match=r"shards\.0"):
        parse_index(data, "index.json")

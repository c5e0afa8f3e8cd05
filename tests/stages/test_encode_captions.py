"""A batch of captions is made once, and remembered as that batch."""

import numpy as np

from hvkf.stages.encode_captions import Prompts


def test_a_batch_of_captions_is_encoded_once_and_old_ones_make_room() -> None:
    asked: list[tuple[str, ...]] = []

    def encode(batch: tuple[str, ...]) -> list[dict[str, object]]:
        asked.append(batch)
        return [{"embeds": np.full(50, ord(caption), np.uint8)} for caption in batch]

    prompts = Prompts(encode, limit_bytes=250)
    ab, cd, e, bc = ("a", "b"), ("c", "d"), ("e",), ("b", "c")
    for caption, batch in (("a", ab), ("c", cd), ("b", ab), ("e", e), ("b", bc), ("d", cd)):
        assert prompts(caption, batch)["embeds"][0] == ord(caption)
    assert asked == [ab, cd, e, bc, cd]

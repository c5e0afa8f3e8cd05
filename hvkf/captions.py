"""Captions: cleaned of the stock openings that captioning models write, and batched by length."""

from collections.abc import Mapping

_OPENINGS = ("In the video,", "In this video,", "In this video clip,", "In the clip,", "Caption:")
_SUBJECTS = (
    "This video",
    "The video",
    "This clip",
    "The clip",
    "The animation",
    "This image",
    "The image",
    "This picture",
    "The picture",
)
_VERBS = ("shows", "depicts", "features", "captures", "highlights", "introduces", "presents")

# The order is the reference's and matters: each opening is tried once, in this order.
STOCK_OPENINGS = (*_OPENINGS, *(f"{subject} {verb}" for subject in _SUBJECTS for verb in _VERBS))


def clean_caption(caption: str) -> str:
    """Strip surrounding white space and the stock openings, such as "The video shows".

    The method is the reference's: a caption keeps openings that come again, or in another order.
    """
    caption = caption.strip()
    for opening in STOCK_OPENINGS:
        if caption.startswith(opening):
            caption = caption.removeprefix(opening).strip()
    return caption


def batch_by_length(lengths: Mapping[str, int], size: int) -> dict[str, tuple[str, ...]]:
    """Batch captions with those of like lengths, so that little padding is computed.

    Args:
        lengths: Each caption's number of tokens. The batches depend on nothing else, not on order.
        size: The most captions in a batch, 1 or more.

    Returns:
        Each caption's batch, itself included, shorter captions first.
    """
    ordered = sorted(lengths, key=lambda caption: (lengths[caption], caption))
    batches = [tuple(ordered[begin : begin + size]) for begin in range(0, len(ordered), size)]
    return {caption: batch for batch in batches for caption in batch}

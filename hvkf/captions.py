"""Cleaning captions of the stock openings that captioning models write."""

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

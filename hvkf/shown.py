"""Values in messages: short enough to read, whatever was given."""

import reprlib

MAX_VALUE = 80
MAX_NAME = 160
MAX_SENTENCE = 240
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = MAX_VALUE
_REPR.maxlevel, _REPR.maxlist, _REPR.maxtuple, _REPR.maxdict = 2, 4, 4, 3


def shown(value: object) -> str:
    """Write a value as it would stand in code, cut in the middle where it is long."""
    try:
        text = _REPR.repr(value)
    except ValueError:  # a number of more digits than Python prints
        text = f"a {type(value).__name__} of very many digits"
    return cut(text, 2 * MAX_VALUE)


def shown_name(name: object) -> str:
    """Write a path or another name; of a long one, its end, which tells more."""
    text = " ".join(str(name).split()) if "\n" in str(name) else str(name)
    return text if len(text) <= MAX_NAME else f"...{text[3 - MAX_NAME :]}"


def cut(text: str, length: int = MAX_SENTENCE) -> str:
    """Shorten a text in its middle."""
    if len(text) <= length:
        return text
    head = (length - 5) // 2
    return f"{text[:head]} ... {text[len(text) - (length - 5 - head) :]}"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Write a number of things: 1 clip, 2 clips."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def counted_are(number: int, noun: str) -> str:
    """Write what a number of things is: 1 clip is, 2 clips are."""
    return f"{counted(number, noun)} {'is' if number == 1 else 'are'}"

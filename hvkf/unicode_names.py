"""File names that look alike: `é` is one character (NFC) or two (NFD), as the system wrote it.

macOS writes names in NFD, and spreadsheets in NFC: the same name in a table and on the disk may
differ in every byte.
"""

import itertools
import unicodedata

from hvkf.storage import Store

MAX_FORMS = 64


def name_there(folder: Store, path: str) -> str:
    """Give the path under which a file lies in a folder, if only its Unicode form is another.

    The path as it is written comes first; where no form is there, it is given back.
    """
    if path.isascii():
        return path
    parts = [_forms(part) for part in path.split("/")]
    try:
        for chosen in itertools.islice(itertools.product(*parts), MAX_FORMS):
            other = "/".join(chosen)
            if folder.exists(other):
                return other
    except (OSError, ValueError):
        pass  # no name of a file: whoever opens the path as it is written is told why
    return path


def _forms(name: str) -> list[str]:
    """List a name as it is, composed, decomposed."""
    return list(dict.fromkeys([name, *(unicodedata.normalize(f, name) for f in ("NFC", "NFD"))]))

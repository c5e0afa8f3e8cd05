import unicodedata
from pathlib import Path

from hvkf.storage import FolderStore
from hvkf.unicode_names import name_there

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Ångström é.png") for form in ("NFC", "NFD"))


def test_the_form_that_is_there_is_found_and_the_written_one_comes_first(tmp_path: Path) -> None:
    folder = FolderStore(tmp_path)
    assert name_there(folder, COMPOSED) == COMPOSED
    folder.put(DECOMPOSED, b"1")
    assert name_there(folder, COMPOSED) == DECOMPOSED
    folder.put(COMPOSED, b"2")
    assert name_there(folder, COMPOSED) == COMPOSED
    assert name_there(folder, DECOMPOSED) == DECOMPOSED


def test_each_part_of_a_path_may_be_of_another_form(tmp_path: Path) -> None:
    folder = FolderStore(tmp_path)
    folder.put(f"{DECOMPOSED}/{COMPOSED}", b"1")
    assert name_there(folder, f"{COMPOSED}/{DECOMPOSED}") == f"{DECOMPOSED}/{COMPOSED}"


def test_a_path_of_very_many_parts_is_not_tried_in_every_way(tmp_path: Path) -> None:
    path = "/".join(["é"] * 40)
    assert name_there(FolderStore(tmp_path), path) == path

"""Records: canonical bytes, stable names."""

from hypothesis import given
from hypothesis import strategies as st

from hvkf.records import Failure, canonical_json, digest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON))
def test_the_order_of_keys_does_not_change_a_digest(value: dict[str, object]) -> None:
    turned = dict(reversed(value.items()))
    assert digest(turned) == digest(value)
    assert canonical_json(turned) == canonical_json(value)


def test_a_digest_stays_what_it_was() -> None:
    assert digest(["cache", 1, None]) == "df98bf923fdbafcbeb8b972ee024d201"


@given(st.text(), st.text(), st.text())
def test_a_record_is_read_back(code: str, message: str, source: str) -> None:
    failure = Failure(code=code, message=message, source=source)
    assert Failure.from_json(failure.to_json()) == failure

"""Seeds that depend on what is drawn for, never on rank, order or machine."""

import hashlib
import json

SEED_BITS = 63


def seed_for(*parts: str | int | None) -> int:
    """Derive a 63-bit seed from the parts that name a draw.

    By convention the parts are the user's seed, the purpose ("noise", "posterior"), the item's key,
    and the epoch or attempt. Parts of different types differ: 1, "1" and None give three seeds.

    Raises:
        TypeError: a part has no canonical text (a float, a path, a list).
    """
    for part in parts:
        if not isinstance(part, str | int | None):
            raise TypeError(
                f"A seed is made of str, int and None, not {type(part).__name__}: {part!r}"
            )
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    first_bytes = hashlib.sha256(text.encode("ascii")).digest()[:8]
    return int.from_bytes(first_bytes, "big") >> (64 - SEED_BITS)

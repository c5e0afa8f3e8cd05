"""YAML from files, standard input and the command line, read in bounds and without surprises.

Unlike `yaml.safe_load`: a key given twice is refused, dates stay text, and neither nesting nor
aliases can take the process's stack or memory.
"""

import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from hvkf.errors import ConfigError
from hvkf.shown import cut, shown, shown_name

MAX_BYTES = 1 << 18
MAX_DEPTH = 40
MAX_NODES = 10_000
"""Of a text with its aliases written out; all settings of hvkf are some 300."""
TAG = "tag:yaml.org,2002:"
KNOWN_TAGS = {TAG + name for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge")}


class _Loader(yaml.SafeLoader):
    """YAML's plain values; what looks like a date is text, as settings know no dates."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in KNOWN_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _TextLoader(_Loader):
    """Lists and mappings whose values are text as they stand."""


_TextLoader.yaml_implicit_resolvers = {}


def read_yaml(text: str, origin: str, *, values_are_text: bool = False) -> Any:
    """Read one YAML document.

    Args:
        text: The document.
        origin: Where it came from, for the error.
        values_are_text: Keep values as they stand: `[1e-4, no]` are two texts.

    Raises:
        ConfigError: it is not YAML, gives a key twice, or is too large, deep or tangled.
    """
    try:
        if len(text.encode(errors="replace")) > MAX_BYTES:
            raise ConfigError(f"{shown_name(origin)} is larger than {MAX_BYTES >> 10} KiB.")
        loader_type = _TextLoader if values_are_text else _Loader
        _check_extent(text, origin)
        loader = loader_type(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, origin, {})
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise _not_yaml(origin, f"{error.problem}{where}") from None
    except yaml.YAMLError as error:
        raise _not_yaml(origin, str(error)) from None
    except (ValueError, LookupError, OverflowError) as error:
        # What PyYAML makes of a tag's value that is none, as of `!!bool x`.
        raise _not_yaml(origin, f"a value is not of its tag: {error}") from None


def _not_yaml(origin: str, problem: str) -> ConfigError:
    return ConfigError(f"{shown_name(origin)} is not YAML: {cut(' '.join(problem.split()))}.")


def _check_extent(text: str, origin: str) -> None:
    """Count the values and their nesting before anything is made of them."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        if number > MAX_NODES:
            raise ConfigError(f"{shown_name(origin)} has more than {MAX_NODES} values.")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{shown_name(origin)} is nested deeper than {MAX_DEPTH} levels.")


def _check_node(node: yaml.Node, origin: str, sizes: dict[int, int]) -> int:
    """Check a node and what is below it; return its size with aliases written out.

    `sizes` holds those of the nodes that were seen; 0 of one that is being looked at.
    """
    where = f"{shown_name(origin)}, line {node.start_mark.line + 1}"
    if (seen := sizes.get(id(node))) is not None:
        if not seen:
            raise ConfigError(f"{where}: an alias stands within what it names.")
        return seen
    sizes[id(node)] = 0
    if node.tag not in KNOWN_TAGS:
        tag = node.tag.replace(TAG, "!!")
        raise ConfigError(f"{where} is not YAML that settings know: remove the tag {shown(tag)}.")
    size = 1
    for child in _children(node, where):
        size += _check_node(child, origin, sizes)
        if size > MAX_NODES:
            raise ConfigError(f"{where}: aliases and values come to more than {MAX_NODES} values.")
    sizes[id(node)] = size
    return size


def _children(node: yaml.Node, where: str) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{where}: a key is a list or a mapping; write a name.")
            if key.value in keys:
                line = key.start_mark.line + 1
                raise ConfigError(
                    f"{where}: the key {shown(key.value)} is given twice (again in line {line}); "
                    "remove one of them."
                )
            keys.add(key.value)
            yield key
            yield value


def read_yaml_file(file: Path) -> Any:
    """Read a YAML file; see `read_yaml`.

    Raises:
        ConfigError: also where the file cannot be read, or is no file.
    """
    name = shown_name(file)
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            what = "a folder" if file.is_dir() else "no regular file"
            raise ConfigError(
                f"{name} is {what}: give --config the path of a YAML file, or - to read standard "
                "input."
            )
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"There is no configuration file {name!r}: give --config the path of a YAML file."
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"The file {shown(str(file))} cannot be read: {reason}.") from None
    return read_yaml(_decoded(data, str(file)), str(file))


def read_yaml_input(origin: str) -> Any:
    """Read YAML from standard input; see `read_yaml`."""
    return read_yaml(_decoded(sys.stdin.buffer.read(MAX_BYTES + 1), origin), origin)


def _decoded(data: bytes, origin: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_yaml(origin, f"byte {error.start + 1} is not UTF-8") from None

"""Nothing in the product hands bytes of a file to what can run code out of them.

The rule is read off the source: each call that can unpickle or run is named here with why it may.
`test_hostile_mds.py` shows by real files that the MDS readers, whose library unpickles, do not.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(file for folder in ("hvkf", "flows") for file in (ROOT / folder).rglob("*.py"))

MODULES = {
    *(
        "pickle",
        "cPickle",
        "_pickle",
        "dill",
        "cloudpickle",
        "joblib",
        "shelve",
        "marshal",
        "jsonpickle",
    ),
    *("pandas", "torch.package", "torch.distributed.checkpoint"),
}
CALLS = {
    *("eval", "exec", "compile", "__import__"),
    *("load", "loads", "unsafe_load", "full_load", "load_all", "full_load_all", "unsafe_load_all"),
    *("read_pickle", "fromfile", "mds_decode", "load_state_dict_from_url"),
    *("all_gather_object", "broadcast_object_list", "gather_object", "recv_object_list"),
}
HARMLESS = {"json.loads", "json.load", "tomllib.loads", "tomllib.load"}
# Calls that read data which needs no trust, or comes from this program's own processes.
ALLOWED = {
    ("hvkf/training/gang.py", "pickle"): "the ranks of one run, over their own gloo group",
    ("hvkf/training/gang.py", "pickle.loads"): "what the line itself pickled",
    ("hvkf/training/gang.py", "dist.all_gather_object"): "the ranks of one run",
    ("hvkf/training/gang.py", "dist.broadcast_object_list"): "the ranks of one run",
    ("hvkf/keyframe_images.py", "image.load"): "Pillow's pixels",
    ("hvkf/stages/evaluate_extras.py", "pickle"): "the class of the error alone",
    ("hvkf/stages/evaluate_extras.py", "torch.jit.load"): (
        "TorchScript that the operator named in evaluate.extras_weights: trusted, as its setting's "
        "documentation says"
    ),
}
WEIGHTS_SAFELY = ("use_safetensors", "weights_only")
# These hold no weights, and run a checkpoint's own code only if told to trust it.
NO_WEIGHTS = {"AutoTokenizer", "CLIPTokenizer", "CLIPProcessor"}


class Use(NamedTuple):
    """A call or an import that can run what it reads."""

    file: str
    name: str
    line: int


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def uses_in(source: str, file: str) -> Iterator[Use]:
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [node.module or "", *inside]
        else:
            modules = []
        yield from (Use(file, module, line) for module in modules if module in MODULES)
        if isinstance(node, ast.Attribute | ast.Name):
            name = name_of(node)
            *owner, last = name.split(".")
            is_builtin = last in ("eval", "exec", "compile", "__import__")
            is_ours = name in HARMLESS or owner[:1] == ["self"]
            if last in CALLS and not is_ours and bool(owner) != is_builtin:
                yield Use(file, name, line)
        if (
            isinstance(node, ast.keyword)
            and node.arg in ("allow_pickle", "trust_remote_code")
            and not (isinstance(node.value, ast.Constant) and node.value.value is False)
        ):
            yield Use(file, node.arg, node.value.lineno)
        if isinstance(node, ast.Call):
            yield from (Use(file, name, line) for name in _unsafe_weights(node, source))


def _unsafe_weights(node: ast.Call, source: str) -> Iterator[str]:
    """Find checkpoints that are loaded without a word that allows only tensors.

    `_load(Model.from_pretrained, source, **weights)` passes the options on, from a dictionary that
    stands in the same function.
    """
    mentioned = [node.func, *node.args]
    for expression in mentioned:
        name = name_of(expression)
        *owner, last = name.split(".")
        if last != "from_pretrained" or not owner or owner[-1] in NO_WEIGHTS:
            continue
        given = {keyword.arg for keyword in node.keywords}
        spread = [
            k.value.id for k in node.keywords if k.arg is None and isinstance(k.value, ast.Name)
        ]
        if not given & set(WEIGHTS_SAFELY) and not any(
            f"{variable} = {{" in source and '"use_safetensors": True' in source
            for variable in spread
        ):
            yield name


def test_nothing_hands_a_files_bytes_to_an_unpickler() -> None:
    found = [
        use
        for file in FILES
        for use in uses_in(file.read_text(), str(file.relative_to(ROOT)))
        if (use.file, use.name) not in ALLOWED
    ]
    assert found == []


def test_each_exception_is_still_needed() -> None:
    used = {
        (use.file, use.name)
        for file in FILES
        for use in uses_in(file.read_text(), str(file.relative_to(ROOT)))
    }
    assert set(ALLOWED) <= used


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "from torch import package",
        "torch.load(file)",
        "torch.load(file, weights_only=True)",
        "np.load(file, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.full_load(text)",
        "map(torch.load, files)",
        "exec(text)",
        "encodings.mds_decode('pkl', data)",
        "torch.hub.load_state_dict_from_url(url)",
        "CLIPModel.from_pretrained(folder)",
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=True)",
    ],
)
def test_the_rule_finds_each_kind(source: str) -> None:
    assert list(uses_in(source, "x.py"))


@pytest.mark.parametrize(
    "source",
    [
        "json.loads(text)",
        "yaml.safe_load(text)",
        "safetensors.torch.load_file(file)",
        "CLIPModel.from_pretrained(folder, use_safetensors=True)",
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=False)",
        "re.compile(pattern)",
    ],
)
def test_the_rule_lets_safe_readers_be(source: str) -> None:
    assert not list(uses_in(source, "x.py"))

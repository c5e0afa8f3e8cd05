import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from hvkf.errors import BadInput
from hvkf.settings.optimizers import OPTIMIZERS, parse_arguments
from hvkf.training.optimizers import make_optimizer

ROOT = Path(__file__).parents[2]
REFERENCE_ARGUMENTS = ("weight_decay=1e-2", "eps=1e-8", "betas=(0.9, 0.95)")
INSTALLED = ["adam", "adamw", "optimi-adamw", "optimi-stableadamw"]
PACKAGES = {"bnb-adamw8bit": "bitsandbytes", "bnb-lion8bit": "bitsandbytes", "came": "came_pytorch"}


def minimise(name: str, arguments: tuple[str, ...], dtype: torch.dtype) -> tuple[float, float]:
    """Fit a vector for some steps; return the loss before and after."""
    weight = torch.nn.Parameter(torch.zeros(64, dtype=dtype))
    target = torch.linspace(-1, 1, 64)
    optimizer = make_optimizer(name, [weight], 0.1, arguments)
    losses = []
    for _ in range(40):
        loss = (weight.float() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_optimizer_trains_on_a_cpu_with_the_references_arguments(
    name: str, dtype: torch.dtype
) -> None:
    before, after = minimise(name, REFERENCE_ARGUMENTS, dtype)
    assert after < before / 20


def test_stableadamw_works_where_triton_is_missing() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "from tests.training.test_optimizers import REFERENCE_ARGUMENTS, minimise, torch\n"
        "import optimi.utils\n"
        "assert not optimi.utils.HAS_TRITON\n"
        "print(*minimise('optimi-stableadamw', REFERENCE_ARGUMENTS, torch.float32))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    before, after = map(float, ended.stdout.split())
    assert after < before / 20


@pytest.mark.parametrize(
    ("name", "kind"),
    [("torch.optim.AdamW", torch.optim.AdamW), ("torch.optim.Adam", torch.optim.Adam)],
)
def test_the_references_default_value_works(name: str, kind: type) -> None:
    optimizer = make_optimizer(name, [torch.nn.Parameter(torch.zeros(2))], 0.1, ())
    assert type(optimizer) is kind


def test_an_unknown_optimizer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"'sgd': use one of adam, adamw, optimi-adamw"):
        make_optimizer("sgd", [torch.nn.Parameter(torch.zeros(2))], 0.1, ())


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - set(INSTALLED)))
def test_an_absent_package_is_named_with_the_fix(name: str) -> None:
    if importlib.util.find_spec(PACKAGES[name]) is not None:
        pytest.skip(f"{PACKAGES[name]} is installed")
    with pytest.raises(BadInput, match=rf"{PACKAGES[name]}.*pip install 'hvkf\["):
        make_optimizer(name, [torch.nn.Parameter(torch.zeros(2))], 0.1, ())


def test_arguments_are_python_literals() -> None:
    parsed = parse_arguments([*REFERENCE_ARGUMENTS, "foreach = None", "amsgrad=True"])
    assert parsed == {
        "weight_decay": 0.01,
        "eps": 1e-8,
        "betas": (0.9, 0.95),
        "foreach": None,
        "amsgrad": True,
    }


@pytest.mark.parametrize("text", ["eps", "eps=", "eps=tiny", "=1", "a b=1", "eps=__import__('os')"])
def test_an_argument_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"write key=value"):
        parse_arguments([text])


def test_an_argument_that_the_optimizer_lacks_is_refused() -> None:
    with pytest.raises(BadInput, match=r"do not fit 'adamw'.*momentum"):
        make_optimizer("adamw", [torch.nn.Parameter(torch.zeros(2))], 0.1, ["momentum=0.9"])


@pytest.mark.parametrize("text", ["betas=(0.9, 0.95)", "eps=1e-8"])
def test_the_shipped_arguments_are_refused_for_came_with_what_to_write(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = types.ModuleType("came_pytorch")
    package.__dict__["CAME"] = torch.optim.AdamW
    monkeypatch.setitem(sys.modules, "came_pytorch", package)
    with pytest.raises(BadInput, match=rf"{text[:3]}.* does not fit 'came'.*write {text[:3]}"):
        make_optimizer("came", [torch.nn.Parameter(torch.zeros(2))], 0.1, [text])


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("kernels", ["foreach=True", "fused=True"])
def test_updating_all_weights_at_once_equals_one_after_the_other(name: str, kernels: str) -> None:
    ended = []
    for chosen in ("foreach=False", kernels):
        generator = torch.Generator().manual_seed(0)
        weights = [
            torch.nn.Parameter(torch.randn(size, generator=generator))
            for size in ((5,), (16, 8), (33, 3))
        ]
        optimizer = make_optimizer(name, weights, 0.01, (*REFERENCE_ARGUMENTS, chosen))
        for _ in range(5):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()
        ended.append(weights)
    for one, other in zip(*ended, strict=True):
        if kernels == "foreach=True":
            assert one.equal(other)
        else:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)

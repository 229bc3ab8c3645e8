"""From what is typed to a model: ``timm:seresnet50``, ``smp:Unet(decoder_attention_type=scse)``, ``my.code:build``.

Nothing is downloaded unless an argument asks for it: weights are random.
"""

import ast
import difflib
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sod_ops._peers import import_peer
from sod_ops.cli.errors import UsageError, one_line

Arguments = dict[str, Any]

_MODEL = re.compile(r"(?P<source>[^:()]+):(?P<name>[^:()]+)(?P<arguments>\(.*\))?", re.DOTALL)


@dataclass(frozen=True)
class Library:
    """A library of models: what it is called in an import and in an index, what it has, and how to get it."""

    module: str
    distribution: str
    names: Callable[[ModuleType], Iterable[str]]
    build: Callable[[ModuleType, str, Arguments], Any]


def _build_timm(timm: ModuleType, name: str, arguments: Arguments) -> Any:
    return timm.create_model(name, **{"pretrained": False, **arguments})


def _build_torchvision(torchvision: ModuleType, name: str, arguments: Arguments) -> Any:
    # A detector's or segmenter's backbone has weights of its own, which are fetched unless told not to.
    accepted = inspect.signature(torchvision.models.get_model_builder(name)).parameters
    random = {argument: None for argument in ("weights", "weights_backbone") if argument in accepted}
    return torchvision.models.get_model(name, **{**random, **arguments})


def _names_smp(smp: ModuleType) -> list[str]:
    return [name for name, value in vars(smp).items() if isinstance(value, type) and issubclass(value, nn.Module)]


def _build_smp(smp: ModuleType, name: str, arguments: Arguments) -> Any:
    return getattr(smp, name)(**{"encoder_weights": None, **arguments})


LIBRARIES = {
    "timm": Library("timm", "timm", lambda timm: timm.list_models(), _build_timm),
    "torchvision": Library(
        "torchvision", "torchvision", lambda torchvision: torchvision.models.list_models(), _build_torchvision
    ),
    "smp": Library("segmentation_models_pytorch", "segmentation-models-pytorch", _names_smp, _build_smp),
}


def resolve(model: str) -> Callable[[], nn.Module]:
    """Finds what a MODEL names, without building it.

    Args:
        model: ``LIBRARY:NAME`` or ``package.module:callable``, either with keyword arguments in parentheses.

    Returns:
        A function that builds the model.

    Raises:
        UsageError: there is no such library or module, or nothing of that name in it.
    """
    match = _MODEL.fullmatch(model)
    if match is None:
        raise UsageError(f"MODEL must be like timm:seresnet50 or package.module:callable, got {model!r}")
    source, name = match["source"], match["name"]
    arguments = _parse_arguments(model, match["arguments"] or "()")
    if source in LIBRARIES:
        construct = _find_in_library(source, name, arguments)
    else:
        construct = functools.partial(_find_callable(source, name), **arguments)
    return functools.partial(_build, model, construct)


def _parse_arguments(model: str, text: str) -> Arguments:
    """The keyword arguments in ``(key=value, ...)``. A value that is no Python literal is taken as a string."""
    source = f"f{text}"
    try:
        call = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError):
        call = None
    if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise UsageError(f"the arguments in {model!r} must be like (encoder_name=resnet34, in_channels=3)")
    return {str(keyword.arg): _value(source, keyword.value) for keyword in call.keywords}


def _value(source: str, node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.get_source_segment(source, node)


def _find_in_library(key: str, name: str, arguments: Arguments) -> Callable[[], Any]:
    library = LIBRARIES[key]
    try:
        module = import_peer(library.module)
    except ModuleNotFoundError as error:
        if error.name != library.module:
            raise UsageError(f"{key} does not import: {one_line(error)}") from error
        raise UsageError(f"{key} is not installed: pip install {library.distribution}") from error
    except ImportError as error:
        raise UsageError(f"{key} does not import: {one_line(error)}") from error
    names = list(library.names(module))
    # timm's tags (seresnet50.ra2_in1k) choose weights, not another architecture.
    if name not in names and not (key == "timm" and name.partition(".")[0] in names):
        raise UsageError(f"{key} has no model {name!r}{_close_matches(name, names)}")
    return functools.partial(library.build, module, name, arguments)


def _find_callable(source: str, name: str) -> Callable[..., Any]:
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(source)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{source}.".startswith(f"{error.name}."):
            raise UsageError(f"importing {source} failed: {one_line(error)}") from error
        raise UsageError(
            f"there is no library or module {source!r}{_close_matches(source, LIBRARIES)}; "
            f"the libraries are {', '.join(LIBRARIES)}, and modules are looked for in the current directory too"
        ) from error
    except (Exception, SystemExit) as error:  # the user's own code, which may do anything when imported
        raise UsageError(f"importing {source} failed: {one_line(error)}") from error
    try:
        found = functools.reduce(getattr, name.split("."), module)
    except AttributeError as error:
        raise UsageError(f"{source} has no {name!r}{_close_matches(name, vars(module))}") from error
    if not callable(found):
        raise UsageError(f"{source}:{name} must be callable and return a torch.nn.Module, got {type(found).__name__}")
    return found


def _build(model: str, construct: Callable[[], Any]) -> nn.Module:
    try:
        built = construct()
    except (Exception, SystemExit) as error:  # the user's own code, or a library's word on wrong arguments
        raise UsageError(f"building {model} failed: {one_line(error)}") from error
    if not isinstance(built, nn.Module):
        raise UsageError(f"{model} must return a torch.nn.Module, got {type(built).__name__}")
    return built


def _close_matches(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


@torch.no_grad()
def exercise(model: nn.Module, x: Tensor) -> None:
    """Gives a freshly initialised model weights and statistics that let every block take part.

    Many initialisations hide blocks: a residual branch whose last gain is zero passes no gradient to the
    squeeze-and-excitation before it, so that a comparison of gradients could not fail there. Parameters that start out
    as one constant get random offsets. Batch norms get the statistics of ``x``, since with those that they start with
    activations shrink or grow from block to block.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point() and bool((parameter == parameter.flatten()[:1]).all()):
            parameter.add_(torch.randn_like(parameter), alpha=0.25)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over what has been seen: of one batch, its own statistics
    model.train()
    model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum

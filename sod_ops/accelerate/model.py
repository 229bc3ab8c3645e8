"""Walking a model: which of its modules are swapped, and which are left alone for which reason."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sod_ops import nn
from sod_ops.accelerate import custom, mmseg, smp, timm, torchvision, tracer, transformers, verify
from sod_ops.accelerate.functions import path_of
from sod_ops.accelerate.report import Report
from sod_ops.accelerate.swap import NotServedError, Swap, bind, is_bound, unbind

# The classes known by import path, with what recognises an instance. A peer library adds a line.
_CLASSES: Mapping[str, Callable[[torch.nn.Module], Swap]] = {
    **timm.CLASSES,
    **torchvision.CLASSES,
    **smp.CLASSES,
    **transformers.CLASSES,
    **mmseg.CLASSES,
}

# Every module by its name, with its swap, or why it is left alone; None for one that no op of this package is for.
Found: TypeAlias = dict[str, tuple[torch.nn.Module, Swap | str | None]]

# Names under which many projects have a block like these; one that is not known by path is named in the report.
_LOOKS_FAMILIAR = re.compile(r"(^|[a-z]|SC)SE_?(Module|Block|Layer)$|Squeeze(And)?Excit")


def accelerate(
    model: torch.nn.Module, example_inputs: Tensor | tuple[Any, ...] | Mapping[str, Any] | None = None
) -> Report:
    """Lets the blocks of ``model`` that this package knows run its fused ops, in place, with the same results.

    Served are the squeeze-and-excitation blocks of timm (``SEModule``, also with batch norm inside in evaluation mode,
    ``EffectiveSEModule``, the EfficientNet family's ``SqueezeExcite``, SENet's ``SEModule``), torchvision
    (``SqueezeExcitation``) and segmentation_models_pytorch (SENet's ``SEModule``, MobileOne's ``SEBlock``,
    ``SCSEModule``); and the pyramid pools and the convolutions over upsampled maps in the PSPNet and UPerNet heads of
    segmentation_models_pytorch (``PSPDecoder``; ``PSPModule``, ``UPerNetDecoder``), transformers (``UperNetHead``, the
    ``UperHead`` of BEiT and Data2Vec, and their ``PyramidPoolingModule``) and mmseg (``PSPHead``, ``UPerHead``, ``PPM``),
    and in the decoder blocks of segmentation_models_pytorch's Unet, UnetPlusPlus and MAnet without attention (whose
    other layers stay as they are). A class is known by its import path; subclasses are left alone, and so is every
    block with something in it that the fused op does not compute.

    With ``example_inputs``, modules of your own are served, too: those whose forward upsamples (``interpolate``,
    ``Upsample``), concatenates and convolves 1x1 or 3x3, as the decoders of U-Nets do (a pad in between runs where there is
    something to pad, and all else with it), those that multiply a map by a
    gate computed from its means by one or two matrices, as squeeze-and-excitation does, and those that scale it by sigmoids
    of channels or of pixels, add two such products, or take its mean and maximum over channels or over space, as CBAM and
    scSE do, whatever they are called. (One such product alone gains on a CPU in training on a large map: it is served where
    the example's is large.) They are found by watching the model run, and traced by torch.fx, with all modules that the
    pattern does not go through left as calls.
    The trace runs where nothing that it depends on has changed: the kind of arguments, the attributes, children and hooks of
    the modules that it was made from and, where their code asks for it, their mode. A forward that does more than a trace
    holds is left, and named. What it reads elsewhere in Python (globals, the insides of objects) counts as constant.
    Copies of TRACER's ``ObjectAttention``, ``UnionAttentionModule`` and ``Frequency_Edge_Module`` are known by their
    children and attributes, and proven in training and evaluation, on the example inputs and on others made from them.

    Only the instances' ``forward`` changes. Classes, parameters, state_dict, hooks on the modules and train/eval stay;
    copies (copy.deepcopy, pickle) are accelerated too. Weights are read at every call. A block goes back to its own
    forward for every call that the fused op does not serve: its children have been replaced or given hooks since, batch
    norm inside it trains, the input is not a float tensor of shape [N, C, H, W], or the model is being traced for
    TorchScript or ONNX. (torch.jit.script reads source code: :func:`restore` before it.) A second call changes nothing.

    Args:
        model: the model, or a single block.
        example_inputs: inputs that ``model`` accepts: a tensor, a tuple of positional arguments or a dictionary of
            keyword arguments. Where they are given, each block is run on what reaches it, both ways, and only those
            whose output and gradients agree, in float64 and in the model's dtype, are swapped. The model runs twice, in its
            mode; parameters, gradients, buffers and PyTorch's random state are left as they were.

    Returns:
        The modules swapped, and those left alone with the reason. ``print`` it.

    Raises:
        TypeError: ``model`` is not a module, or ``example_inputs`` none of the above.
    """
    _check_model("accelerate", model)
    arguments = None if example_inputs is None else verify.call_arguments(example_inputs)
    found: Found = {name: (module, _swap_or_reason(module)) for name, module in model.named_modules()}
    if arguments is not None:
        _find_custom(model, found, arguments)
        swaps = {name: (module, outcome) for name, (module, outcome) in found.items() if isinstance(outcome, Swap)}
        for name, reason in verify.deviations(model, swaps, arguments).items():
            found[name] = found[name][0], reason
    report = Report()
    for name, (module, outcome) in found.items():
        if isinstance(outcome, Swap):
            bind(module, outcome)
            report.swapped.append((name, _class_name(module)))
        elif outcome is not None:
            report.left.append((name, _class_name(module), outcome))
    return report


def restore(model: torch.nn.Module) -> int:
    """Takes back what :func:`accelerate` did to ``model``, so that every module runs its own forward again.

    Returns:
        How many modules were restored: 0 where none was accelerated.

    Raises:
        TypeError: ``model`` is not a module.
    """
    _check_model("restore", model)
    return sum(unbind(module) for module in model.modules())


def _find_custom(model: torch.nn.Module, found: Found, arguments: verify.Arguments) -> None:
    """Adds to ``found`` copies of known modules, and what a run of ``model`` shows in those that no library's file knows."""
    refused = set()
    for name, (module, outcome) in found.items():
        if outcome is None or _is_unknown(module):
            try:
                found[name] = module, tracer.recognise(module) or outcome
            except NotServedError as reason:
                found[name] = module, str(reason)
                refused.add(module)
    known = {
        module
        for module, outcome in found.values()
        if isinstance(outcome, Swap) or (outcome is not None and not _is_unknown(module))
    }
    names = {module: name for name, (module, _) in found.items()}
    with verify.state_preserved(model):
        for module, outcome in custom.find(model, lambda: verify.run(model, arguments), known):
            if isinstance(outcome, Swap) or module not in refused:
                found[names[module]] = module, outcome


def _is_unknown(module: torch.nn.Module) -> bool:
    """Whether nothing is known of the class of ``module`` but its name."""
    return not is_bound(module) and not any(path_of(kind) in _CLASSES for kind in type(module).__mro__)


def _check_model(function: str, model: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {type(model).__name__}")


def _class_name(module: Any) -> str:
    return module.original_name if isinstance(module, torch.jit.ScriptModule) else type(module).__name__


def _swap_or_reason(module: torch.nn.Module) -> Swap | str | None:
    """The swap for a module, or why it is left alone; None for one that no op of this package is for."""
    try:
        return _recognise(module)
    except NotServedError as reason:
        return str(reason)


def _recognise(module: torch.nn.Module) -> Swap | None:
    if is_bound(module):
        raise NotServedError("already accelerated")
    path = path_of(type(module))
    if path in _CLASSES:
        if "forward" in module.__dict__:
            raise NotServedError("its forward has been replaced")
        if path_of(type(module).forward) != f"{path}.forward":
            raise NotServedError("the forward of its class has been replaced")
        try:
            return _CLASSES[path](module)
        except AttributeError as missing:
            raise NotServedError(
                f"it is not as the versions of its library that are known have it: {missing}"
            ) from missing
    base = next((path for path in map(path_of, type(module).__mro__) if path in _CLASSES), None)
    if base is not None:
        raise NotServedError(f"a subclass of {base}, which may compute something else")
    if _LOOKS_FAMILIAR.search(_class_name(module)) and not isinstance(module, nn.SqueezeExcitation):
        if isinstance(module, torch.jit.ScriptModule):
            raise NotServedError("compiled by TorchScript")
        raise NotServedError(f"{path} is not a class that sod_ops knows")
    return None

"""Finding the losses that this package has a fused form of, and replacing them."""

import importlib
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType, TracebackType
from typing import Any, TypeAlias

from sod_ops.patch import names, smp, torchvision, ultralytics

Function: TypeAlias = Callable[..., Any]

# What is known, by import path, with what makes a replacement of the original. A peer library adds a line.
_KNOWN: Mapping[str, Callable[[Function], Function]] = {
    **torchvision.FUNCTIONS,
    **ultralytics.FUNCTIONS,
    **smp.FUNCTIONS,
}
_LIBRARIES = sorted({path.partition(".")[0] for path in _KNOWN})

_lock = threading.RLock()

# The replacement of each original, made once, so that nested patches put the same one.
_replacements: dict[Function, Function] = {}


class Patch:
    """What :func:`patch_losses` has done; as a context manager it takes it back at its end.

    Attributes:
        patched: the import path of every name that was replaced, sorted.
    """

    def __init__(self, extra: Mapping[str, Function]) -> None:
        targets = [(*_named(path), replacement) for path, replacement in extra.items()]
        self._originals: list[tuple[Function, Function]] = []  # after what replaces them
        self.patched: list[str] = []
        with _lock:
            for path, make in _KNOWN.items():
                place = _loaded(path)
                if place is not None:
                    original = names.original_of(*place)
                    if original not in _replacements:
                        _replacements[original] = make(original)
                    self._put(*place, _replacements[original])
                    self._originals.append((_replacements[original], original))
            for owner, attribute, replacement in targets:
                self._put(owner, attribute, replacement)
        self.patched.sort()

    def _put(self, owner: Any, attribute: str, replacement: Function) -> None:
        """Under a name and, if it names where the function is defined, wherever that was imported by name."""
        original = names.original_of(owner, attribute)
        places = {(id(owner), attribute): (owner, attribute)}
        if isinstance(owner, ModuleType) and getattr(original, "__module__", None) == owner.__name__:
            places |= {(id(module), name): (module, name) for module, name in names.bound_to(original)}
        for place in places.values():
            names.put(self, *place, staticmethod(replacement) if isinstance(original, staticmethod) else replacement)
            self.patched.append(_path_of(*place))

    def restore(self) -> None:
        """Puts back what was there before; a second call does nothing."""
        with _lock:
            names.take_back(self)
            for replacement, original in self._originals:
                if not names.is_in_force(replacement):
                    # Modules that were imported meanwhile have taken it for the original.
                    for owner, attribute in names.bound_to(replacement):
                        setattr(owner, attribute, original)
            self._originals.clear()

    def __enter__(self) -> "Patch":
        return self

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.restore()

    def __repr__(self) -> str:
        return f"<sod_ops.Patch of {', '.join(self.patched) or 'nothing'}>"


def patch_losses(extra: Mapping[str, Function] | None = None) -> Patch:
    """Lets loss functions of other libraries, wherever they were imported by name, be served by this package's.

    Known are torchvision's ``sigmoid_focal_loss``, ``generalized_``, ``distance_`` and ``complete_box_iou_loss`` and
    pairwise ``complete_box_iou``; ultralytics' ``bbox_iou`` with the flag CIoU, DIoU or GIoU for boxes given by their
    corners; segmentation_models_pytorch's ``FocalLoss`` on bool and integer targets (on others, which may be soft, it
    computes something else), unless it is normalized or has a threshold.

    Only libraries that are imported already are looked at, and in them and in every other module that is loaded (yours,
    too) the names that stand for these functions at module level: call it after your imports. What is kept elsewhere, such
    as in an attribute of an object, is not found; ``extra`` may name it. A replacement serves what the fused op serves, with
    the same results within rounding, finite where torchvision's are NaN; every other call (other dtypes or devices,
    broadcasting, subclasses of Tensor, traces for TorchScript or ONNX) goes to the function that it replaces.
    (torch.jit.script reads source code: restore before it.)

    ``with sod_ops.patch_losses():`` restores everything at the end of the block; after a plain call,
    ``patch = sod_ops.patch_losses()``, everything stays until ``patch.restore()``. Patches may be nested, repeated and
    restored in any order. They hold for the whole process, all threads.

    Args:
        extra: further functions to replace: the import path of each, such as ``"my_project.train.structure_loss"``, with
            what to put there, as it is. If the path is that of the function's definition, it is replaced wherever it was
            imported by name. The module that a path names is imported.

    Returns:
        The patch, whose ``patched`` lists the import paths of all names replaced, and whose ``restore()`` takes it back.

    Raises:
        TypeError: ``extra`` is not such a mapping, or a path names something that is not callable.
        ValueError: a path names nothing. Nothing has been replaced then.
    """
    _check(extra)
    patch = Patch(extra or {})
    if not patch.patched:
        warnings.warn(
            f"patch_losses has replaced nothing: none of {', '.join(_LIBRARIES)} has been imported yet", stacklevel=2
        )
    return patch


def _check(extra: object) -> None:
    if extra is None:
        return
    if not isinstance(extra, Mapping):
        raise TypeError(f"patch_losses: extra must be a mapping or None, got {type(extra).__name__}")
    for path, replacement in extra.items():
        if not isinstance(path, str):
            raise TypeError(f"patch_losses: extra must have import paths as keys, got {path!r}")
        if not callable(replacement):
            raise TypeError(f"patch_losses: extra[{path!r}] must be callable, got {type(replacement).__name__}")


def _path_of(owner: Any, attribute: str) -> str:
    if isinstance(owner, type):
        return f"{owner.__module__}.{owner.__qualname__}.{attribute}"
    return f"{getattr(owner, '__name__', type(owner).__name__)}.{attribute}"


def _loaded(path: str) -> tuple[Any, str] | None:
    """The owner of a known function and its name; None where its library isn't loaded, or somebody else has replaced it."""
    *parts, attribute = path.split(".")
    end = next((end for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in sys.modules), 0)
    owner: Any = sys.modules.get(".".join(parts[:end]))
    for part in parts[end:]:
        owner = getattr(owner, "__dict__", {}).get(part)
    if attribute not in getattr(owner, "__dict__", {}):
        return None
    original = names.original_of(owner, attribute)
    known = f"{getattr(original, '__module__', '')}.{getattr(original, '__qualname__', '')}" == path
    return (owner, attribute) if known else None


def _named(path: str) -> tuple[Any, str]:
    """The same for a path that the user names, whose module is imported."""
    *parts, attribute = path.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        try:
            owner: Any = importlib.import_module(module)
            break
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # a module that it imports
    else:
        raise ValueError(f"patch_losses: extra names {path!r}, and there is no module {path.partition('.')[0]!r}")
    for part in parts[end:]:
        if not hasattr(owner, part):
            raise ValueError(f"patch_losses: extra names {path!r}, and {_path_of(owner, part)} does not exist")
        owner = getattr(owner, part)
    if attribute not in getattr(owner, "__dict__", {}):
        raise ValueError(f"patch_losses: extra names {path!r}, and {_path_of(owner, attribute)} is not defined there")
    original = names.original_of(owner, attribute)
    if not callable(original):
        raise TypeError(f"patch_losses: extra names {path!r}, which is not callable: {type(original).__name__}")
    return owner, attribute

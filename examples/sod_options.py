"""The command line of train_sod.py."""

import argparse
from collections.abc import Callable
from pathlib import Path

# What decides the course of a run: a resumed one must have the same.
DECISIVE = (
    "size", "encoder", "width", "pretrained", "steps", "batch_size", "lr", "encoder_lr_scale", "weight_decay", "warmup",
    "clip", "cutmix", "copy_paste", "plain", "precision", "seed",
)  # fmt: skip

_EXAMPLES = """examples:
  python examples/train_sod.py                                   two CPU cores, some minutes, generated images
  python examples/train_sod.py --data DUTS-TR --size 352 --encoder seresnet50 --pretrained --lr 5e-4
                               --encoder-lr-scale 0.1 --batch-size 16 --steps 20000 --workers 8
  python examples/train_sod.py --resume                          goes on where Ctrl-C (or a full disk) stopped it
  python examples/train_sod.py --profile 20                      a step's phases, fused against reference
  torchrun --nproc-per-node 2 examples/train_sod.py              two processes: GPUs where there are, else CPUs
"""


def _number(kind: type, at_least: float, at_most: float = float("inf")) -> Callable[[str], float]:
    """Reads an argument of one kind within limits."""

    def read(text: str) -> float:
        try:
            value: float = kind(text)
        except ValueError:
            value = float("nan")
        if not at_least <= value <= at_most or value == float("inf"):
            limits = f"from {at_least:g} to {at_most:g}" if at_most < float("inf") else f"of at least {at_least:g}"
            raise argparse.ArgumentTypeError(
                f"expected {'a whole' if kind is int else 'a'} number {limits}, got {text!r}"
            )
        return value

    return read


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="train_sod.py",
        description="Trains a salient object network with the fused ops of sod_ops, or with plain PyTorch in their place.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    count, part = _number(int, 1), _number(float, 0, 1)

    data = p.add_argument_group("data")
    data.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="a folder with images/NAME.png (or .jpg) and masks/NAME.png; without it, a data set is generated in OUT",
    )
    data.add_argument(
        "--validation", type=Path, metavar="DIR", help="another such folder to measure on, instead of --hold-out"
    )
    data.add_argument(
        "--hold-out",
        type=_number(float, 0.001, 0.9),
        default=0.15,
        metavar="PART",
        help="the part of the pairs that is measured on and not trained on, 0.001 to 0.9 (%(default)s)",
    )
    data.add_argument(
        "--generated", type=_number(int, 4), default=400, metavar="N", help="pairs to generate (%(default)s)"
    )
    data.add_argument(
        "--size",
        type=count,
        default=128,
        metavar="PIXELS",
        help="height and width that images are resized to: a multiple of the encoder's stride, usually 32 (%(default)s)",
    )
    data.add_argument(
        "--workers",
        type=_number(int, 0),
        default=0,
        metavar="N",
        help="processes that read images for each training process; 0: it reads them itself (%(default)s)",
    )

    model = p.add_argument_group("model")
    model.add_argument(
        "--encoder",
        default="mobilenetv3_small_100",
        metavar="NAME",
        help="a timm model with features at several levels, such as seresnet50, seresnext50_32x4d, "
        "efficientnet_b0, mobilenetv3_large_100 (%(default)s)",
    )
    model.add_argument(
        "--width", type=_number(int, 4), default=64, metavar="CHANNELS", help="of the decoder (%(default)s)"
    )
    model.add_argument("--pretrained", action="store_true", help="start from timm's ImageNet weights (a download)")

    training = p.add_argument_group("training")
    training.add_argument("--steps", type=count, default=500, metavar="N", help="optimiser steps (%(default)s)")
    training.add_argument(
        "--batch-size",
        type=_number(int, 2),
        default=8,
        metavar="IMAGES",
        help="of each process in a step; 2 at least, for batch norm (%(default)s)",
    )
    training.add_argument(
        "--lr", type=_number(float, 0), default=3e-3, metavar="RATE", help="AdamW's highest learning rate (%(default)s)"
    )
    training.add_argument(
        "--encoder-lr-scale",
        type=part,
        default=1.0,
        metavar="FACTOR",
        help="of the encoder's learning rate, 0 to 1; 0.1 suits a pretrained one (%(default)s)",
    )
    training.add_argument(
        "--weight-decay", type=_number(float, 0), default=1e-2, metavar="RATE", help="AdamW's (%(default)s)"
    )
    training.add_argument(
        "--warmup", type=part, default=0.05, metavar="PART", help="of the steps; then a cosine to 0 (%(default)s)"
    )
    training.add_argument(
        "--clip",
        type=_number(float, 0),
        default=2.0,
        metavar="NORM",
        help="the gradient's largest norm over all parameters; 0: no limit (%(default)s)",
    )
    training.add_argument(
        "--cutmix", type=part, default=0.25, metavar="PROBABILITY", help="of a batch to be mixed (%(default)s)"
    )
    training.add_argument(
        "--copy-paste",
        type=part,
        default=0.25,
        metavar="PROBABILITY",
        help="of an image to get the objects of another (%(default)s)",
    )
    training.add_argument("--plain", action="store_true", help="no random crops, flips and light")
    training.add_argument("--seed", type=_number(int, 0, 2**31), default=0, metavar="N", help="(%(default)s)")

    running = p.add_argument_group("how it runs")
    running.add_argument(
        "--ops",
        choices=("fused", "reference"),
        default="fused",
        help="the fused kernels everywhere, also in timm's encoder, or their plain PyTorch definitions (%(default)s)",
    )
    running.add_argument(
        "--precision",
        choices=("auto", "float32", "bf16", "fp16", "float64"),
        default="auto",
        help="bf16 and fp16 are autocast, fp16 (GPU only) with a gradient scaler; float64 is for comparisons; "
        "auto: bf16 or fp16 on a GPU, float32 on a CPU (%(default)s)",
    )
    running.add_argument("--compile", action="store_true", help="the network and the loss by torch.compile")
    running.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:1 (cuda where there is one)")

    output = p.add_argument_group("output")
    output.add_argument(
        "--out",
        type=Path,
        default=Path("out/train_sod"),
        metavar="OUT",
        help="folder of checkpoint.pt, losses.csv and .png, metrics.json, predictions.png (%(default)s)",
    )
    output.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint.pt")
    output.add_argument(
        "--checkpoint-every", type=count, default=200, metavar="STEPS", help="and at the end (%(default)s)"
    )
    output.add_argument(
        "--evaluate-every",
        type=_number(int, 0),
        default=0,
        metavar="STEPS",
        help="measure on the held-out pairs so often; 0: at the end only (%(default)s)",
    )
    output.add_argument(
        "--profile",
        type=_number(int, 0),
        default=0,
        metavar="N",
        help="train nothing: N steps of each, fused and reference in turn, and a table of their phases in milliseconds",
    )
    return p

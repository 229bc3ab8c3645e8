"""What the C++ losses take of the process's memory beyond inputs and gradients, their own scratch included: the profiler
that the losses' test_memory() uses sees tensors alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Linux resets a process's peak where 5 is written to clear_refs. Maps are large enough that what the interpreter takes in
# between doesn't count.
MEASURE = """
import json, re
from pathlib import Path
import torch
import sod_ops

def resident(which):
    return int(re.search(which + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def three_maps(heads, mask):
    return sum(head.sum() for head in heads) + torch.zeros(3, *mask.shape).sum()

functions = {op: getattr(sod_ops, op) for op in (
    "structure_loss", "adaptive_pixel_intensity_loss", "bce_ssim_iou_loss", "dice_loss")}
mask = (torch.rand(3, 1, 768, 768) > 0.5).float()
values = [torch.rand(mask.shape) for _ in range(2)]
for op, function in {**functions, "three maps": three_maps}.items():
    function([v[..., :64].clone().requires_grad_() for v in values], mask[..., :64]).backward()
    for gradients in (False,) if function is three_maps else (False, True):
        heads = [v.requires_grad_(gradients) for v in values]
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        loss = function(heads, mask)
        if gradients:
            loss.backward()
        taken = (resident("VmHWM") - before) / (mask.numel() * 4)
        print(json.dumps([op, gradients, taken - 2 * gradients]))
        for head in heads:
            head.grad = None
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells and resets a process's peak")
def test_at_most_two_maps_beyond_inputs_and_gradients() -> None:
    """For two heads, whose gradients the forward stores; and what takes three maps is seen to."""
    # What is freed goes back to the system at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 9
    for op, gradients, maps in found:
        assert maps > 2.5 if op == "three maps" else -0.5 < maps <= 2, (op, gradients, maps)

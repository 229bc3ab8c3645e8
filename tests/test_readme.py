"""The README's promises: its snippets run, its commands exist, its links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sod_ops._peers import import_peer

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("snippet", blocks("python"))
def test_snippets_run(snippet: str) -> None:
    import_peer("timm")  # beside a CPU-only torch, torchvision needs help to import
    exec(compile(snippet, "README.md", "exec"), {})


@pytest.mark.parametrize("command", [c for b in blocks("bash") for c in b.splitlines() if c.startswith("python")])
def test_commands_run(command: str, tmp_path: Path) -> None:
    words = [sys.executable, *shlex.split(command)[1:]]
    if "accelerate" in words:
        words += ["--out", str(tmp_path)]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    pages = README + (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"\bmake (run|test|build|lint|format|bench|gpu|[a-z]+(?=`))", pages))
    assert {"run", "test", "lint", "bench", "gpu"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target

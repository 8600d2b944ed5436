"""What a run was made with: versions, hardware, code. Nothing here ever raises or imports torch."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("weft", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "peft")
"""Packages whose version can change a number."""

SOURCE = Path(__file__).parents[1]
"""The code of Weft itself."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def hardware() -> dict[str, Any]:
    """The machine as the operating system tells it; callers add what PyTorch knows."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "ram_bytes": _ram_bytes(),
        "threads": {
            name: os.environ[name]
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
            if name in os.environ
        },
    }


@dataclass(frozen=True)
class CodeState:
    """The state of some code. `head` and `dirty` are None, `diff` empty outside a git checkout."""

    head: str | None
    dirty: bool | None
    diff: str
    sha256: str
    """Of all Python files, by name and content: also tells apart code that is not in git."""


def code_state(directory: Path = SOURCE) -> CodeState:
    """The commit, uncommitted changes and hash of the Python code below `directory`."""
    digest = source_sha256(directory)
    tracked = _git(directory, "ls-files", "--", "*.py")
    head = _git(directory, "rev-parse", "HEAD") if tracked else None
    if head is None:  # not a checkout, or installed into somebody else's
        return CodeState(None, None, "", digest)
    status = _git(directory, "status", "--porcelain", "--", ".")
    diff = _git(directory, "diff", "HEAD", "--no-color", "--no-ext-diff", "--", ".")
    return CodeState(head.strip(), bool(status), diff or "", digest)


def source_sha256(directory: Path) -> str:
    """Hash of the names and contents of the Python files below `directory`."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*.py")):
        with suppress(OSError):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(directory).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _git(directory: Path, *arguments: str) -> str | None:
    """Output of a git command, or None when there is no git or it refuses."""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments],
            capture_output=True,
            timeout=20,
            check=True,
        )
        return done.stdout.decode(errors="replace")
    return None


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        with suppress(OSError, subprocess.SubprocessError):
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(
                command, capture_output=True, text=True, timeout=5, check=True
            ).stdout.strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int | None:
    """Cores this process may run on, which a container can make fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _ram_bytes() -> int | None:
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None

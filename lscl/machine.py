"""The machine and the packages that computed a number."""

import ctypes
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

import lscl


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the packages that its numbers depend on."""
    names = ("torch", "torchvision", "timm", "numpy", "safetensors")
    found = {"python": platform.python_version(), "lscl": lscl.__version__}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def physical_memory() -> int:
    """Bytes of this machine's memory."""
    return psutil.virtual_memory().total


def peak_memory() -> int:
    """The most bytes of memory that this process has held so far.

    psutil knows that on Windows only; elsewhere the system does, in kilobytes on Linux and in bytes on macOS.
    """
    now = psutil.Process().memory_info()
    if hasattr(now, "peak_wset"):
        return now.peak_wset
    try:
        import resource  # Windows has no such module
    except ImportError:
        return now.rss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def keep_freed_memory() -> None:
    """Let the C library of Linux keep what training frees, for the next step, instead of giving it back to the system.

    Every step asks for the same large blocks. By default each comes from the system, which fills it with zeros first
    (mallopt(3)). Elsewhere nothing changes. It holds for the whole process, until it ends.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)  # M_MMAP_MAX: large blocks lie on the heap, too
        library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes that may be free at the heap's end


def hardware() -> dict[str, Any]:
    """Processor, the widest instructions that torch uses on it, cores, memory and GPU of this machine."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_gb": round(physical_memory() / 2**30),
        "gpu": gpu,
    }

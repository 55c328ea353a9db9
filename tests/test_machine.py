"""The machine and the packages that a number was made with."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

import pytest
import torch

from lscl import machine


def test_versions_are_those_that_run():
    found = machine.versions()
    assert found["python"] == platform.python_version() and found["torch"] == version("torch")
    assert set(found) == {"python", "lscl", "torch", "torchvision", "timm", "numpy", "safetensors"}


def test_a_package_that_is_not_there_is_told(monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(machine, "version", absent)
    assert machine.versions()["timm"] == "not installed"


def test_the_hardware_is_this_machines():
    found = machine.hardware()
    assert (
        found["cores"] == os.cpu_count()
        and found["cpu"]
        and found["memory_gb"] == round(machine.physical_memory() / 2**30) > 0
    )
    assert found["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert found["gpu"] == (torch.cuda.get_device_name() if torch.cuda.is_available() else None)


def test_without_proc_the_processor_is_what_python_calls_it(monkeypatch):
    monkeypatch.setattr(machine.Path, "read_text", lambda *_, **__: "no model here")
    assert machine.hardware()["cpu"] == (platform.processor() or platform.machine())


def test_memory_is_counted_in_bytes(monkeypatch, forked):
    """A block of 400 MB moves the peak of a new process by so much; macOS gives bytes where Linux gives kilobytes."""
    said, _ = forked("""
import torch
from lscl import machine
before = machine.peak_memory()
block = torch.ones(100_000_000)
print(before, machine.peak_memory())
""").communicate()
    before, after = map(int, said.split())
    assert 1.5e8 < after - before < 8e8 and 10**7 < before < machine.physical_memory()
    here = machine.peak_memory()
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    assert machine.peak_memory() * 1024 == pytest.approx(here, rel=0.1)


def test_windows_tells_its_peak_itself(monkeypatch):
    class Process:
        def memory_info(self):
            return SimpleNamespace(rss=1, peak_wset=2)

    monkeypatch.setattr(machine.psutil, "Process", Process)
    assert machine.peak_memory() == 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library of Linux")
def test_freed_memory_is_taken_again(forked):
    """Ten blocks of 100 MB, one after the other, touch new pages each; kept, those of blocks before are used again.

    The first blocks only fill malloc's lists of the small rests that aligning leaves (seven of each size), so they
    are not counted.
    """
    kept, given_back = (
        forked(f"""
import resource, torch
from lscl import machine
{call}
for _ in range(40):
    torch.ones(25_000_000)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for _ in range(10):
    torch.ones(25_000_000)
print(faults() - before)
""")
        for call in ("machine.keep_freed_memory()", "")
    )
    counts = [int(process.communicate()[0]) for process in (kept, given_back)]
    assert 5 * counts[0] < counts[1], counts


def test_elsewhere_nothing_is_asked_of_the_c_library(monkeypatch):
    monkeypatch.setattr(machine.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: pytest.fail("no such library"))
    machine.keep_freed_memory()

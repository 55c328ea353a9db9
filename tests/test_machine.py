"""The machine and the packages that a number was made with."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

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

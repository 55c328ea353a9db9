"""Copies to a device; on the CPU there is nothing to copy."""

import torch

from lscl.models.transfer import Shipment, send

CPU = torch.device("cpu")


def test_what_is_there_already_is_not_copied():
    tensor = torch.arange(3)
    assert send(tensor, CPU) is tensor
    assert Shipment({"labels": tensor}, CPU).take("labels") is tensor


def test_a_tensor_goes_to_the_device_that_is_asked_for():
    meta = torch.device("meta")
    sent = send(torch.zeros(2, 3), meta)
    assert (sent.device, sent.shape) == (meta, (2, 3))
    assert Shipment({"images": torch.zeros(4)}, meta).take("images").device == meta

"""The systems: one file each, on the hooks of `base.Method`."""

from lscl.federation.method import Method
from lscl.methods.dualprompt import DualPrompt
from lscl.methods.fed_lscl import FedLSCL
from lscl.methods.fedavg import FedAvg
from lscl.methods.fedavg_vit import FedAvgViT
from lscl.methods.fedmgp import FedMGP
from lscl.methods.fedprox import FedProx
from lscl.methods.glfc import GLFC
from lscl.methods.l2p import L2P
from lscl.methods.local_head import LocalHead
from lscl.methods.local_lora import LocalLoRA
from lscl.methods.lorm import LoRM
from lscl.methods.mfcl import MFCL
from lscl.methods.pilora import PILoRA
from lscl.methods.target import TARGET

METHODS: dict[str, type[Method]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavg_vit": FedAvgViT,
    "l2p": L2P,
    "dualprompt": DualPrompt,
    "glfc": GLFC,
    "target": TARGET,
    "mfcl": MFCL,
    "fedmgp": FedMGP,
    "pilora": PILoRA,
    "lorm": LoRM,
    "fed_lscl": FedLSCL,
    "local_head": LocalHead,
    "local_lora": LocalLoRA,
}

"""What systems, scores, data sets and costs are called in tables and figures."""

from lscl.experiments.records import Record

METHOD_LABELS = {
    "fed_lscl": "Fed-LSCL", "fedavg": "FedAvg", "fedprox": "FedProx", "fedavg_vit": "FedAvg + ViT", "l2p": "FedAvg + L2P",
    "dualprompt": "FedAvg + DualPrompt", "glfc": "GLFC", "target": "TARGET", "mfcl": "MFCL", "fedmgp": "FedMGP", "pilora": "PILoRA", "lorm": "LoRM",
    "local_lora": "own static LoRA", "local_head": "own head only",
}  # fmt: skip
O2D_LABELS = {"exact": "O2D exact", "sgd": "O2D gradient", "average": "generators averaged", "none": "nothing fused"}
PAPER_NAMES = {
    "FedAvg": "fedavg", "FedProx": "fedprox", "FedAvg+ViT": "fedavg_vit", "FedAvg+L2P": "l2p", "FedAvg+DualP": "dualprompt",
    "GLFC": "glfc", "TARGET": "target", "MFCL": "mfcl", "FedMGP": "fedmgp", "PILoRA": "pilora", "LoRM": "lorm", "Fed-LSCL": "fed_lscl",
}  # fmt: skip
MASK_LABELS = {"task": "task-masked", "seen": "class-incremental", "all": "all classes"}
SCORE_HEADS = {mask: f"{text} %" for mask, text in MASK_LABELS.items()}
SCORES = ("task", "seen")  # the paper's score, and the class-incremental one
DATASET_LABELS = {"cifar100": "CIFAR-100", "glyphs": "Glyphs", "imagenet_r": "ImageNet-R", "folder": "own images"}
COLUMN_HEADS = {"label": "system"}  # what a column of a frame is called in a table, where the name differs
# Columns of `lscl.results.costs_frame`: their heads in a table, and the form of a number.
COST_LABELS = {
    "mb_up": ("MB up", ".2f"),
    "mb_down": ("MB down", ".2f"),
    "trained_parameters": ("trained parameters", ",.0f"),
    "cpu_minutes": ("CPU minutes", ".1f"),
    "peak_memory_mb": ("peak memory MB", ".0f"),
}


def label_of(method: str) -> str:
    """The name of a system in tables."""
    return METHOD_LABELS.get(method, method)


def methods_in_order() -> list[str]:
    """The systems in the order of the tables."""
    return list(METHOD_LABELS)


def notes_of(record: Record) -> str:
    """What tells a run's row from others of the same system: the form of O2D, and what else differs from the profile."""
    extra = {key: value for key, value in record["overrides"].items() if key != "o2d"}
    notes = [O2D_LABELS[record["config"]["o2d"]]] if record["method"] == "fed_lscl" else []
    return ", ".join(notes + [f"{key} = {value}" for key, value in sorted(extra.items())])


def row_label(record: Record) -> str:
    """The name of a run's row in tables: the system, and `notes_of` it in brackets."""
    name, notes = label_of(record["method"]), notes_of(record)
    return f"{name} ({notes})" if notes else name

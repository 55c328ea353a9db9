"""Made-up files of timed training steps, as benchmarks/gpu.py writes them."""

import json

H100 = "NVIDIA H100 80GB HBM3"


def row(method, mode="fp32", batch=16, seconds=0.5, outcome="passed", **other):
    """A row of a timed step on ViT-B/16."""
    return {
        "check": f"b1.{method}-{mode}-{batch}", "outcome": outcome, "method": method, "mode": mode, "batch": batch,
        "vit": "vit_base_patch16_224", "seconds": seconds, "images_per_second": batch / seconds, "waiting": 0.1,
        "ratio_to_bare": 1.1, "planned_mb": 4400, "peak_mb": 4000, "plan_holds": True, "check_seconds": 9.0, **other,
    }  # fmt: skip


def write(folder, rows, gpu=H100, name=None):
    """results/benchmarks/gpu--<card>.json in a folder of results; -> its path."""
    path = folder / "benchmarks" / f"{name or 'gpu--NVIDIA-H100'}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cpu": "some cpu", "cores": 16, "memory_gb": 128, "gpu": gpu}
    path.write_text(
        json.dumps({"name": path.stem, "ratio": 0, "goal": 0, "machine": machine, "commit": "c", "rows": rows})
    )
    return path

"""Every parameter once: the command line's options, the notebooks' parameters and the book's table are made from `Experiment`."""

import hashlib
import json
import stat
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lscl.errors import LsclError, unknown

MethodName = Literal[
    "fedavg", "fedprox", "fedavg_vit", "l2p", "dualprompt", "glfc", "target", "mfcl", "fedmgp", "pilora", "lorm", "fed_lscl",
    "local_head", "local_lora",
]  # fmt: skip
DatasetName = Literal["cifar100", "imagenet_r", "glyphs", "folder"]
ProfileName = Literal["smoke", "demo", "mini", "colab", "paper"]

PLACES = {"data_dir", "device", "weights"}  # paths and devices of one machine: in no record
WHERE_AND_HOW = PLACES | {"threads"}  # not in the digest; lscl.experiments.origin compares them
PIXELS = {"glyphs": 32, "cifar100": 32}  # pixels a side of data sets that have one size only

# Which systems read an option that not all of them read, by the first letters of its name; of several entries the longest counts.
_CNN = ("fedavg", "fedprox", "glfc", "target", "mfcl", "fed_lscl")
_VIT = ("fedavg_vit", "l2p", "dualprompt", "fedmgp", "pilora", "lorm", "fed_lscl", "local_head", "local_lora")
READERS: dict[str, tuple[str, ...]] = {
    **{f"{name}_": (name,) for name in ("l2p", "pilora", "lorm", "glfc", "target", "mfcl")},
    "prox_": ("fedprox",),
    "dual_": ("dualprompt",),
    "mgp_": ("fedmgp",),
    "prompt_batchwise": ("l2p", "dualprompt"),
    "prompt_": ("l2p", "dualprompt", "fedmgp"),
    "head": ("fedavg_vit", "fedmgp"),
    "head_merge": (*_CNN[:-1], "fedavg_vit", "l2p", "dualprompt", "pilora", "lorm"),
    "block": ("fed_lscl", "local_lora"),
    "rank": ("fed_lscl", "local_lora", "pilora"),
    "lora_alpha": ("fed_lscl", "local_lora"),
    **dict.fromkeys(("cnn", "features", "channels_last"), _CNN),
    **dict.fromkeys(("foundation", "weights", "normalize", "activations", "compile"), _VIT),
    **dict.fromkeys(
        (
            "feature_norm", "lr_", "generator_dropout", "auxiliary", "collaboration", "continual", "ewc_weight", "lwf_weight", "replay_weight",
            "alpha", "beta", "consistency", "buffer_per_class", "o2d",
        ),
        ("fed_lscl",),
    ),
}  # fmt: skip


def readers(option: str) -> tuple[str, ...]:
    """The systems that read an option."""
    found = [start for start in READERS if option.startswith(start)]
    return READERS[max(found, key=len)] if found else get_args(MethodName)


def check_read(options: Iterable[str], methods: Iterable[str]) -> None:
    """Refuse options that none of the methods reads: they would file the same run under another name.

    Raises:
        LsclError: naming the option and the systems that it belongs to.
    """
    methods = sorted(set(methods))
    for option in options:
        if not set(readers(option)) & set(methods):
            raise LsclError(f"{option} is an option of {', '.join(readers(option))}, not of {', '.join(methods)}: leave it out")


# Bounds far beyond any use: what lies outside is a slip, and would end in an overflow or an allocation that no machine can hold.
RATE = {"ge": 1e-9, "le": 1e3}  # learning rates
WEIGHT = {"ge": 0, "le": 1e6}  # of a term of a loss
SCALE = {"ge": 1e-6, "le": 1e6}  # what is divided by: temperatures, norms, concentrations
NAME = r"^[A-Za-z0-9_@./:, +=-]*$"  # what names of models are made of; they enter file names and pages


class Experiment(BaseModel):
    """One run, fully described. Made by `experiment`, which fills in the profile's values."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: MethodName = Field("fed_lscl", description="system to run")
    dataset: DatasetName = Field("glyphs", description="data set; folder = any image-folder tree given by data_dir")
    profile: ProfileName = Field("demo", description="size of the experiment")
    seed: int = Field(42, ge=0, le=2**31 - 1, description="seed of every named draw (paper: 42, 1999, 2024)")

    data_dir: Path | None = Field(None, description="folder with the images (train/ and test/ trees, torchvision's own files, or imagenet-r)")
    folder_digest: str | None = Field(
        None, pattern="^[0-9a-f]{16}$", description="digest of all images of dataset = folder; filled in, or checked if given"
    )
    images_per_class: int | None = Field(None, ge=1, le=10**6, description="training images used per class, none = all")
    test_images_per_class: int | None = Field(None, ge=1, le=10**6, description="test images used per class, none = all")
    duplicates: Literal["keep", "drop"] = Field(
        "keep", description="drop: no training image whose pixels a test image or another class has too, and one of those repeated in a class"
    )
    eval_split: Literal["official", "holdout"] = Field("official", description="test images: official split, or 30 % of the client's own")
    image_size: int = Field(32, ge=8, le=1024, description="pixels a side of the decoded images")
    cnn_size: int | None = Field(None, ge=8, le=1024, description="pixels a side of what the CNN sees, none = as decoded")

    clients: int = Field(5, ge=1, le=1000, description="clients (paper: 5)")
    tasks: int = Field(5, ge=1, le=1000, description="tasks per client (paper: 5)")
    classes_per_task: int = Field(8, ge=1, le=10**4, description="classes per task (paper: 8)")
    private_classes: int = Field(15, ge=0, le=10**6, description="classes only one client has (paper: 15 on CIFAR-100, 40 on ImageNet-R)")
    stop_after: int | None = Field(None, ge=1, le=1000, description="end the run behind this task, none = the last; what came before is the same")
    rounds: int = Field(5, ge=1, le=10**4, description="communication rounds per task (paper: 5)")
    dirichlet: float = Field(1.0, **SCALE, description="concentration of the shares of a public class (authors' code: 1.0)")
    min_share: float = Field(0.0, ge=0, lt=1, description="redraw until every client has this share of a public class")

    epochs: int = Field(5, ge=1, le=10**4, description="local epochs per round (authors' code: 5)")
    batch: int = Field(16, ge=1, le=2**16, description="images per step (authors' code: 16)")
    lr: float = Field(1e-3, **RATE, description="Adam learning rate of the classifier and of a static LoRA's A and B")
    head_merge: Literal["plain", "holders"] = Field("plain", description="average a head row over all clients, or over those that trained it")
    head: Literal["linear", "mlp"] = Field("linear", description="averaged classifier on the ViT: one layer, or two with 512 hidden units")

    prox_mu: float = Field(0.01, **WEIGHT, description="weight of FedProx's pull to the received weights")

    prompt_clip: float = Field(1.0, **SCALE, description="largest norm of the gradient in a step of a prompt method")
    prompt_batchwise: bool = Field(False, description="prompts chosen by a vote of the whole batch, as the official codes do")
    l2p_pool: int = Field(10, ge=1, le=10**4, description="prompts in L2P's pool")
    l2p_length: int = Field(5, ge=1, le=1000, description="tokens of a prompt of L2P")
    l2p_top_k: int = Field(5, ge=1, le=10**4, description="prompts that an image takes from the pool")
    l2p_pull: float = Field(0.1, **WEIGHT, description="weight of L2P's pull of the chosen keys to the frozen feature")
    dual_general_blocks: int = Field(2, ge=1, le=1000, description="first blocks that get DualPrompt's general prefix")
    dual_task_blocks: int = Field(3, ge=1, le=1000, description="blocks behind them that get the prefix of a task")
    dual_general_length: int = Field(5, ge=1, le=1000, description="keys and values in the general prefix")
    dual_task_length: int = Field(5, ge=1, le=1000, description="keys and values in the prefix of a task (official: 5, on ImageNet-R 20)")
    dual_pull: float = Field(1.0, **WEIGHT, description="weight of DualPrompt's pull of the task's key to the frozen feature")

    mgp_length: int = Field(15, ge=1, le=1000, description="tokens of FedMGP's global prompt (official: 15)")
    mgp_local_length: int = Field(15, ge=1, le=1000, description="keys and values of FedMGP's local prompts in each of their blocks (official: 15)")
    mgp_block: int = Field(2, ge=0, le=1000, description="first block with FedMGP's local prompts, 0-based (official: 2)")
    mgp_blocks: int = Field(3, ge=1, le=1000, description="number of blocks with FedMGP's local prompts (official: 3)")
    mgp_key: float = Field(0.1, **WEIGHT, description="weight of FedMGP's pull of the keys to their queries (official: 0.1)")
    mgp_surrogate_per_class: int = Field(20, ge=1, le=10**6, description="images per class on FedMGP's server, tested on by nobody (official: 20)")
    mgp_surrogate_epochs: int = Field(5, ge=1, le=10**4, description="passes of FedMGP's prompt fusion over the server's images (official: 5)")
    mgp_surrogate_lr: float = Field(0.001875, **RATE, description="Adam learning rate of FedMGP's prompt fusion (official: 0.001875)")

    pilora_lr_lora: float = Field(1e-4, **RATE, description="Adam learning rate of PILoRA's LoRA (official: 1e-5 for 30 rounds; 1e-4 for 5)")
    pilora_temperature: float = Field(1.0, **SCALE, description="temperature T of PILoRA's distances in the cross-entropy (official: 1)")
    pilora_pull: float = Field(0.001, **WEIGHT, description="weight of the distance to the own prototype (official: 0.001)")
    pilora_orthogonal: float = Field(0.5, **WEIGHT, description="weight of the new LoRA's orthogonality to those of earlier tasks (official: 0.5)")
    pilora_sparse: float = Field(0.01, **WEIGHT, description="weight of the L1 norm of PILoRA's A (official code: 0.01; not in the paper)")
    pilora_merge: float = Field(0.2, **SCALE, description="temperature of the weights of the clients' prototypes (official: 0.2)")

    lorm_rank: int = Field(1, ge=1, le=1024, description="rank of LoRM's LoRA in every linear layer (official: 1, 2, 16 or 32 by data set)")
    lorm_alpha: float = Field(0.5, ge=0, le=1, description="factor off the diagonal of the head's Gram matrix in LoRM (official: 0.5)")

    glfc_memory: int = Field(800, ge=0, le=10**7, description="exemplars per client, shared equally among its classes (official: 2000)")
    glfc_selection: Literal["herding", "random"] = Field("herding", description="which images become exemplars")
    glfc_gc: float = Field(0.5, **WEIGHT, description="weight of the gradient-compensated loss from the second task on (official: 0.5)")
    glfc_rd: float = Field(0.5, **WEIGHT, description="weight of the relation distillation (official: 0.5)")
    glfc_columns: Literal["global", "local"] = Field("global", description="loss over seen and old-model classes, or over the client's seen ones")
    glfc_proxy: bool = Field(True, description="old model = best of the previous task by the proxy server's images; off: its last one")
    glfc_perturb: int = Field(50, ge=0, le=10**5, description="gradient steps that disguise a prototype image (official: 50)")
    glfc_steps: int = Field(250, ge=1, le=10**5, description="L-BFGS steps to reconstruct a prototype (official: 250)")
    glfc_iterations: int = Field(20, ge=1, le=10**4, description="L-BFGS iterations in a step (official: 20)")
    glfc_images: int = Field(20, ge=1, le=10**4, description="images kept of each reconstruction, those after the last steps (official: 20)")

    target_images: int = Field(8000, ge=2, le=10**7, description="synthetic images, made by as many rounds as they need (official: 8000)")
    target_batch: int = Field(256, ge=2, le=2**16, description="images made in one round of the synthesis (official: 256)")
    target_steps: int = Field(10, ge=1, le=10**5, description="steps of the fast generator in a round, the best images are kept (official: 10)")
    target_latent: int = Field(256, ge=1, le=2**16, description="length of the generator's input z (official: 256)")
    target_width: int = Field(64, ge=1, le=4096, description="channels of the generator's last block (official: 64)")
    target_lr: float = Field(2e-3, **RATE, description="Adam learning rate of the generator (official: 0.002)")
    target_lr_z: float = Field(0.01, **RATE, description="Adam learning rate of z (official: 0.01)")
    target_bn: float = Field(10.0, **WEIGHT, description="weight of the BatchNorm statistics (official: 10)")
    target_onehot: float = Field(0.5, **WEIGHT, description="weight of the cross-entropy with random labels (official: 0.5)")
    target_adversarial: float = Field(1.0, **WEIGHT, description="weight of the disagreement of teacher and student (official: 1)")
    target_warmup: int = Field(20, ge=0, le=10**6, description="rounds before the student and the adversarial term begin (official: 20)")
    target_student_steps: int = Field(400, ge=0, le=10**6, description="training steps of the student in a round (official: 400)")
    target_temperature: float = Field(20.0, **SCALE, description="temperature of the student's training (official: 20)")
    target_meta: Literal["maml", "reptile", "plain"] = Field("maml", description="update of the generator by its fast copy; plain = no copy")
    target_kd: float = Field(25.0, **WEIGHT, description="weight of the distillation on synthetic images (official: 25)")

    mfcl_ft: float = Field(1.0, **WEIGHT, description="weight of the head-only cross-entropy over all classes (official: 1)")
    mfcl_kd: float = Field(0.1, **WEIGHT, description="weight of the distillation through the old head (official: 0.1)")
    mfcl_replay: int = Field(128, ge=1, le=2**16, description="generated images per training step (official: 128)")
    mfcl_latent: int = Field(1000, ge=1, le=2**16, description="length of the generator's input z (official: 1000)")
    mfcl_width: int = Field(64, ge=1, le=4096, description="channels of the generator's last block (official: 64)")
    mfcl_steps: int = Field(100, ge=1, le=10**6, description="training steps of the generator per task (official: 100)")
    mfcl_batch: int = Field(128, ge=2, le=2**16, description="images per step of the generator's training (official: 128)")
    mfcl_lr: float = Field(1e-3, **RATE, description="Adam learning rate of the generator (official: 0.001)")
    mfcl_tau: float = Field(1000.0, **SCALE, description="temperature of the generator's class loss (official: 1000)")
    mfcl_ce: float = Field(1.0, **WEIGHT, description="weight of the generator's class loss (official: 1)")
    mfcl_ie: float = Field(1.0, **WEIGHT, description="weight of the information entropy over classes (official: 1)")
    mfcl_bn: float = Field(50.0, **WEIGHT, description="weight of the BatchNorm statistics (official: 50)")
    mfcl_tv: float = Field(1e-3, **WEIGHT, description="weight of the smoothness of the images (official: 0.001)")

    foundation: str = Field(
        "mini",
        min_length=1,
        max_length=200,
        pattern=NAME,
        description="frozen ViT: mini (shipped), tiny (random, for tests), a timm name, or random/<timm name>",
    )
    weights: Path | None = Field(None, description="local checkpoint of the frozen ViT: .safetensors, or .npz of the original release")
    weights_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="SHA-256 of that file; filled in, or checked if given")
    normalize: bool = Field(True, description="normalise the ViT's input as its checkpoint wants (the authors' code does not)")
    block: int = Field(3, ge=0, le=1000, description="transformer block that gets the update, 0-based (paper Fig. 3: 3)")
    rank: int = Field(4, ge=1, le=1024, description="rank r of the update (authors' code: 4)")
    lora_alpha: float = Field(16.0, **SCALE, description="scale s = lora_alpha / rank (authors' code: 16)")

    cnn: str = Field(
        "small",
        min_length=1,
        max_length=10**4,
        pattern=NAME,
        description="each client's CNN: small, tiny, a name of torchvision or timm; several with commas",
    )
    features: int = Field(128, ge=1, le=2**14, description="width m of the CNN's features (512 for ResNet-18)")
    feature_norm: bool = Field(True, description="layer-normalise f before the generator")
    lr_cnn: float = Field(1e-3, **RATE, description="Adam learning rate of the CNN")
    lr_generator: float = Field(1e-3, **RATE, description="Adam learning rate of the generator's weights, the per-image part")
    lr_generator_bias: float = Field(1e-3, **RATE, description="Adam learning rate of the generator's bias, which is a static LoRA")
    generator_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on f before the generator, in training")
    auxiliary: float = Field(0.0, **WEIGHT, description="weight of the CNN's own cross-entropy (0 = the paper's loss)")

    collaboration: Literal["written", "static", "cnn"] = Field(
        "written", description="a LoRA written per image (paper), one static LoRA, or the CNN alone without the ViT"
    )
    continual: Literal["consistency", "ewc", "lwf", "replay", "none"] = Field(
        "consistency", description="what keeps CNN and generator from forgetting: Eq. 4 (paper), or a method in its place"
    )
    ewc_weight: float = Field(100.0, **WEIGHT, description="weight of the penalty, continual = ewc only")
    lwf_weight: float = Field(1.0, **WEIGHT, description="weight of the distillation, continual = lwf only")
    replay_weight: float = Field(1.0, **WEIGHT, description="weight of the kept images' cross-entropy, continual = replay only")
    alpha: float = Field(1.0, **WEIGHT, description="weight of the feature term of Eq. 4")
    beta: float = Field(1.0, **WEIGHT, description="weight of the generator term of Eq. 4")
    consistency: Literal["relative", "mean", "sum"] = Field("relative", description="scale of Eq. 4: relative, mean- or sum-squared error")
    buffer_per_class: int = Field(20, ge=0, le=10**6, description="lowest-loss images kept per class (paper: 20)")
    o2d: Literal["exact", "sgd", "average", "none"] = Field(
        "exact", description="One-by-One Distillation: closed form (ours), gradient steps (paper); or FedAvg of the generators, or nothing"
    )
    o2d_lambda: float = Field(1.0, **SCALE, description="pull to the own generator, in mean eigenvalues of the teachers' second moments")
    o2d_epochs: int = Field(5, ge=1, le=10**4, description="passes over the teachers, o2d = sgd only")
    o2d_lr: float = Field(1e-3, **RATE, description="Adam learning rate, o2d = sgd only")
    o2d_upload: Literal["features", "gram"] = Field("features", description="what goes up beside the generator: f of the buffer, or its Gram matrix")

    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="arithmetic of the clients' training; fp16 scales its gradients")
    tf32: bool = Field(False, description="let a CUDA GPU round products of float32 to TF32")
    channels_last: bool = Field(False, description="convolutions in channels-last layout")
    activations: Literal["fp32", "bf16"] = Field("fp32", description="numbers of the stored prefix activations; bf16 takes half of the disk")
    compile: bool = Field(False, description="the blocks behind the cut through torch.compile, compared with the plain ones at the start")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute; auto = as the record or saved state, else a GPU if any")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; none = as the record or saved state has it, else 2 (smoke: 1)")

    @property
    def side(self) -> int:
        """Pixels a side of what the CNN sees."""
        return self.image_size if self.cnn_size is None else self.cnn_size

    @property
    def source(self) -> str:
        """The data set in file names; a folder with the first 8 digits of its images' digest, so that two of them stand side by side."""
        return f"{self.dataset}-{self.folder_digest[:8]}" if self.folder_digest else self.dataset

    @property
    def cpu_threads(self) -> int:
        """The threads to compute with on a CPU, where neither a record nor a saved state says how many."""
        return self.threads or (1 if self.profile == "smoke" else 2)

    @property
    def tasks_run(self) -> int:
        """Tasks that are really run."""
        return self.tasks if self.stop_after is None else min(self.stop_after, self.tasks)

    @property
    def digest(self) -> str:
        """SHA-256 of all values that decide the result and are not the field's default, 12 hex digits.

        So a parameter that comes later, at the default that leaves everything as it was, keeps the digests of finished runs.
        """
        values = self.model_dump(mode="json", exclude=WHERE_AND_HOW, exclude_defaults=True)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """File name of the record: data set, method, what differs from the profile, seed, digest."""
        differs = [f"{key}={value}" for key, value in sorted(self.overrides().items())]
        text = "--".join([self.source, self.method, *differs]).replace("/", "_")
        if len(text) > 150:  # a file name has room for 255 bytes
            text = text[:150]
        return f"{text}--s{self.seed}--{self.digest}"

    def overrides(self) -> dict[str, Any]:
        """The values that differ from the profile's; which images a folder holds is none of them."""
        base = experiment(method=self.method, dataset=self.dataset, profile=self.profile, seed=self.seed)
        ours, theirs = (one.model_dump(mode="json", exclude=WHERE_AND_HOW | {"folder_digest"}) for one in (self, base))
        return {key: value for key, value in ours.items() if value != theirs[key]}


# What each profile changes. Reasons: smoke = seconds; demo = minutes on two slow cores; mini = the book's tables;
# colab and paper = the paper's own setting (ViT at 224 px), the latter with ResNet-18 and the authors' 16 images, 5 epochs.
_SMALL_STEPS = {"epochs": 2, "batch": 32, "lr": 3e-3, "lr_generator": 1e-5, "lr_generator_bias": 3e-3}
PROFILES: dict[str, dict[str, Any]] = {
    "smoke": dict(
        clients=3, tasks=2, classes_per_task=3, private_classes=4, rounds=2, epochs=1, batch=8, images_per_class=6, test_images_per_class=2,
        foundation="tiny", block=1, cnn="tiny", features=16, buffer_per_class=2,
    ),
    "demo": dict(_SMALL_STEPS, epochs=1, images_per_class=10, test_images_per_class=4),
    "mini": dict(_SMALL_STEPS, images_per_class=60, test_images_per_class=50),
    "colab": dict(foundation="vit_small_patch16_224.augreg_in21k", cnn="resnet18", features=512, feature_norm=False, images_per_class=100),
    "paper": dict(foundation="vit_base_patch16_224.orig_in21k", cnn="resnet18", features=512, feature_norm=False, eval_split="holdout"),
}  # fmt: skip

# What a profile makes smaller for one method alone, so that the digests of all other runs stay as they are. smoke: seconds; the tiny
# ViT has three blocks. demo and mini: minutes on two cores, so narrow generators, a fiftieth of GLFC's search, a twentieth of TARGET's
# images (more than a client's own in a task), in MFCL as many generated images in a step as real ones. FedMGP's server goes through the
# whole ViT in every round: with 20 images per class and 5 epochs it would cost more than all clients; with fewer steps, larger ones.
_SMALL_SERVER: dict[str, dict[str, Any]] = {
    "glfc": dict(glfc_steps=5, glfc_images=5),
    "target": dict(target_images=400, target_batch=50, target_width=16, target_warmup=4, target_student_steps=20),
    "mfcl": dict(mfcl_replay=32, mfcl_latent=100, mfcl_width=16, mfcl_batch=64),
    "fedmgp": dict(mgp_surrogate_per_class=1, mgp_surrogate_epochs=1, mgp_surrogate_lr=1e-2),
}
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "smoke": {
        "dualprompt": dict(dual_general_blocks=1, dual_task_blocks=2),
        "glfc": dict(glfc_memory=12, glfc_perturb=2, glfc_steps=2, glfc_iterations=1, glfc_images=1),
        "target": dict(
            target_images=20, target_batch=8, target_steps=3, target_latent=8, target_width=4, target_warmup=1, target_student_steps=2,
        ),
        "mfcl": dict(mfcl_replay=8, mfcl_latent=8, mfcl_width=4, mfcl_steps=5, mfcl_batch=8),
        "fedmgp": dict(mgp_length=3, mgp_local_length=2, mgp_block=1, mgp_blocks=2, mgp_surrogate_per_class=1, mgp_surrogate_epochs=2),
    },
    "demo": _SMALL_SERVER,
    "mini": {**_SMALL_SERVER, "fedmgp": dict(mgp_surrogate_per_class=1, mgp_surrogate_epochs=2, mgp_surrogate_lr=1e-2)},
    "colab": {"fedmgp": dict(test_images_per_class=80)},
}  # fmt: skip

# What a method changes in a profile. demo and mini: chosen on the tuning seed alone, from grids of the same size (lscl sweep tune).
# paper and colab: official values, with Adam and batches of 16 as everywhere here.
_TUNED: dict[str, dict[str, Any]] = {
    "local_head": dict(lr=3e-3),
    "fedavg": dict(lr=3e-3),
    "fedavg_vit": dict(lr=1e-1),
    "local_lora": dict(lr=1e-2),
    "target": dict(lr=3e-4),
    "mfcl": dict(lr=1e-3),
    "fedmgp": dict(lr=3e-2),
    "pilora": dict(lr=1e-2, pilora_lr_lora=1e-3),
    "lorm": dict(lorm_rank=4),
    "l2p": dict(lr=3e-2),
    "dualprompt": dict(lr=3e-2),
    "fed_lscl": dict(lr_generator_bias=1e-4, lr_generator=1e-6, o2d_lambda=10.0, auxiliary=0.0),
}
_OFFICIAL: dict[str, dict[str, Any]] = {
    "l2p": dict(lr=0.03 * 16 / 256),
    "dualprompt": dict(lr=0.03 * 16 / 256),
    "fedmgp": dict(lr=0.03 * 16 / 256, head="mlp"),
    "pilora": dict(lr=2e-2, pilora_lr_lora=1e-4),
    "lorm": dict(lr=3e-3),
}
CHOSEN: dict[str, dict[str, dict[str, Any]]] = {"demo": _TUNED, "mini": _TUNED, "colab": _OFFICIAL, "paper": _OFFICIAL}

# What a data set changes in a profile, after profile and method. Glyphs are drawn: there are 24 and 8 images of each class.
_GLYPHS = {"private_classes": 40}
# ImageNet-R has no public classes, and about 50 images of its smallest class, of which 10 are for testing.
_IMAGENET_R = {"private_classes": 40, "mgp_surrogate_per_class": 10}
_LITTLE_IMAGENET_R = {"private_classes": 40, "images_per_class": 40, "test_images_per_class": 5, "mgp_surrogate_per_class": 1}
DATASETS: dict[tuple[str, str], dict[str, Any]] = {
    ("smoke", "glyphs"): {"private_classes": 6},
    ("demo", "glyphs"): _GLYPHS,
    ("mini", "glyphs"): dict(_GLYPHS, images_per_class=24, test_images_per_class=7),  # the eighth is for FedMGP's server
    ("colab", "glyphs"): dict(_GLYPHS, images_per_class=24, test_images_per_class=7),
    ("paper", "cifar100"): {"cnn_size": 224},  # stored with the 32 that they have
    ("paper", "glyphs"): _GLYPHS,
    ("demo", "imagenet_r"): dict(_LITTLE_IMAGENET_R, images_per_class=10),
    ("mini", "imagenet_r"): dict(_LITTLE_IMAGENET_R, image_size=64),
    ("colab", "imagenet_r"): dict(_LITTLE_IMAGENET_R, image_size=224),
    ("paper", "imagenet_r"): dict(_IMAGENET_R, image_size=224),
}


def check_profile(name: object) -> None:
    """Raises LsclError for anything but the name of a profile."""
    if not isinstance(name, str) or name not in PROFILES:
        raise unknown("profile", name, PROFILES)


def check_dataset(name: object) -> None:
    """Raises LsclError for anything but the name of a data set."""
    if name not in get_args(DatasetName):
        raise unknown("data set", name, get_args(DatasetName))


def experiment(**values: Any) -> Experiment:
    """The experiment of a profile with `values` changed; unknown or impossible values are one clear line.

    Raises:
        LsclError: naming the field, the value and what is allowed.
    """
    profile = values.get("profile", "demo")
    dataset = values.get("dataset", "glyphs")
    check_profile(profile)
    for key in values:
        if key not in Experiment.model_fields:
            raise unknown("parameter", key, Experiment.model_fields)
    check_dataset(dataset)
    if "method" in values and values["method"] not in get_args(MethodName):
        raise unknown("method", values["method"], get_args(MethodName))
    from_dataset = DATASETS.get((profile, dataset), {})
    sizes, tuned = (table.get(profile, {}).get(values.get("method", "fed_lscl"), {}) for table in (SIZES, CHOSEN))
    given = {key: value for key, value in values.items() if value is not None or Experiment.model_fields[key].default is None}
    if given.get("weights") is not None:
        given["weights_sha256"] = _checked_digest(Path(str(given["weights"])), given.get("weights_sha256"))
    try:
        made = Experiment(**{**PROFILES[profile], **sizes, **tuned, **from_dataset, "profile": profile, "dataset": dataset, **given})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise LsclError(f"{field} = {_short(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]} ({_describe(field)})") from None
    return _with_images(made)


def _with_images(config: Experiment) -> Experiment:
    """The config with what is known of its images: their size is the data set's, and a folder is known by their digest."""
    size = PIXELS.get(config.dataset, config.image_size)
    if config.image_size != size:
        raise LsclError(f"image_size = {config.image_size}: images of {config.dataset} have {size} pixels a side, no other size is allowed")
    if config.dataset != "folder" and config.folder_digest is not None:
        raise LsclError(f"folder_digest = {config.folder_digest!r}: only dataset = folder is known by its images, this is {config.dataset}")
    if config.dataset != "folder" or config.data_dir is None:
        return config
    from lscl.data.sources import folder_digest  # here: it needs this module

    return config.model_copy(update={"folder_digest": folder_digest(config)})


def _short(value: object, most: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _checked_digest(path: Path, wanted: str | None) -> str:
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe would never end
            raise OSError("not a regular file")
        found = _file_digest(path, about.st_size, about.st_mtime_ns)
    except (OSError, ValueError) as error:
        raise LsclError(
            f"weights = {_short(str(path))}: {getattr(error, 'strerror', None) or error}; give an existing .safetensors or .npz file"
        ) from error
    if wanted is not None and wanted != found:
        raise LsclError(f"weights = {_short(str(path))}: its SHA-256 is {found}, weights_sha256 = {wanted} was asked for")
    return found


@lru_cache
def _file_digest(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file; `size` and time `changed` tell whether it is still the one that was read before."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(field: str) -> str:
    return Experiment.model_fields[field].description or field

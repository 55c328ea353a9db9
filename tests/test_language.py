"""The English of everything that a reader meets: plain phrases, short sentences, and every term in the glossary."""

import ast
import json
import re

import pytest
from tests_root import ROOT

# Phrases that read as translated, or that name things by where they stand; and what to write instead.
AVOIDED = {
    r"\b(stands?|stood|standing) beside\b": "compare, or say which is larger",
    r"\b(told|tells?|telling) (them |it |the two |these |us |\w+ and \w+ )?apart\b": "separate, distinguish",
    r"\b(own head only|own static lora|own ridge head|(an|the) own (head|ridge|lora))\b": "local head, local LoRA, ...",
    r"\b(behind|in front of) (the|its|their) cut\b": "above the cut, below the cut",
    r"\bfor want of\b": "without, because ... is missing",
    r"\bby nobody\b": "nobody has measured",
    r"\bwhat stands here\b": "this page, this table",
    r"\bcom(es?|ing|e) to stand\b": "appears",
    r"\bwhat came out\b": "results",
    r"\bsays? to it\b": "the claims, tested",
    r"\bnothing but the\b": "only the",
    r"\b(interval|range) (holding|leaving out) zero\b": "... seeds cannot separate",
    r"\bis given away\b": "the model is told the task",
    r"\bnot so kind\b": "the harder score",
    r"\b(goes|go|went|going) on (behind|from there)\b": "resumes, continues",
    r"\bgone on with\b": "resumed",
    r"\bas officially\b": "as in the official code",
    r"\bin whatever order\b": "in any order",
    r"\bcost more than (it|they) gave\b": "hurt",
    r"\bwherever they lie\b": "wherever they are",
    r"\bthat is much beside\b": "that is many for",
}
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "CONTRIBUTING.md", "book/*.md", "book/methods/*.md", "results/tables/*.md")
    for path in ROOT.glob(pattern)
)
NOTEBOOKS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "lscl").rglob("*.py"))
WRITTEN = [page for page in PAGES if re.fullmatch(r"book/\w+\.md", page)]
LONGEST = 45  # words of a sentence
CODE = re.compile(r"```.*?```|~~~.*?~~~|`[^`]*`", re.DOTALL)


def sentences_of(name):
    """The text that a reader meets in a page, the markdown of a notebook, or the docstrings and texts of a module."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".ipynb"):
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        return "\n\n".join("".join(cell["source"]) for cell in cells)
    if name.endswith(".py"):
        values = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
        return "\n\n".join(value for value in values if isinstance(value, str) and " " in value)
    return text


def found_in(text):
    """[(phrase, what to write instead)] in a text; the words of code are not prose."""
    plain = " ".join(CODE.sub(" ", text).split()).lower()
    return [(match[0], advice) for phrase, advice in AVOIDED.items() if (match := re.search(phrase, plain))]


@pytest.mark.parametrize("name", [*PAGES, *NOTEBOOKS, *MODULES])
def test_no_phrase_reads_as_translated(name):
    assert found_in(sentences_of(name)) == []


@pytest.mark.parametrize(
    "sentence",
    [
        "Our numbers stand beside\nthe paper's.",
        "Three seeds do not tell them apart.",
        "own head only, measured",
        "All blocks behind the cut are compiled.",
        "GPU: what stands here was measured by nobody.",
        "The interval holding zero, nothing is known.",
    ],
)
def test_the_phrases_of_the_first_version_are_found(sentence):
    assert found_in(sentence)


@pytest.mark.parametrize("sentence", ["`own head only` is an old label.", "The server distils each client's head."])
def test_code_and_plain_sentences_pass(sentence):
    assert found_in(sentence) == []


def prose(text):
    """The sentences of a page: without code, tables, maths, comments, directives and the labels of lists."""
    text = re.sub(r"(?ms)^```.*?^```$|^:::.*?^:::$|\$\$.*?\$\$|^\|.*?$|^[%#(].*?$|^[-*\d]+\. ?|^ *[-*] ", "\n\n", text)
    for part in re.split(r"\n\s*\n", text):
        yield from re.split(r"(?<=[.:;?!])\s+", " ".join(part.split()))


@pytest.mark.parametrize("name", WRITTEN)
def test_sentences_are_short(name):
    long = [one for one in prose(sentences_of(name)) if len(one.split()) > LONGEST]
    assert long == []


# ---- the glossary

TERMS = set(re.findall(r"^(\S.*)\n  \S", (ROOT / "book" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE))
WORDS = {part.strip().lower() for term in TERMS for part in re.split(r",| \(.*", term)}
# Abbreviations that need no entry: units, formats, hardware, products, and names of networks, data sets and systems.
KNOWN = set(
    re.split(
        r"\s+",
        """AdamW API CIFAR CONTRIBUTING CPU cuBLAS CUDA DenseNet DINOv2 DualPrompt EfficientNet EXIF FedAvg FedAvgM
        FedMGP FedProx FlashAttention FP32 GB GIF GLFC GPU GPUs HEIC HTML HTTP iCaRL ImageNet JSON L2P LoRM LPIPS
        LSCL LSCT macOS MB MFCL MobileNet MobileNetV3 NaN NVIDIA PILoRA PNG PyPI PyTorch RegMean ReLU ResNet ROC SHA
        SuperLink SuperNode SVG TARGET TensorBoard TensorFlow TLS URL VGG VisionTransformer WSL YAML""",
    )
)
FIELD_TERMS = [
    *("ablation", "adapted block", "augmentation", "backward transfer", "baseline", "batchnorm", "buffer", "client"),
    *(
        "class-incremental",
        "closed-form head",
        "cls token",
        "confidence interval",
        "continual learning",
        "control",
        "cut",
    ),
    *(
        "deterministic",
        "digest",
        "dirichlet share",
        "distillation",
        "epoch",
        "exemplar",
        "federated continual learning",
    ),
    *(
        "federated learning",
        "forgetting",
        "foundation model",
        "glyphs",
        "gram matrix",
        "head",
        "held-out",
        "holm",
        "key",
    ),
    *("lora", "mask", "one-by-one distillation", "parameter generator", "payload", "private class", "public class"),
    *("profile", "prompt", "prototype", "random features", "record", "replay", "ridge regression", "round", "seed"),
    *("secure aggregation", "sweep", "task", "task-masked", "trial"),
]


def is_explained(term):
    """Whether an entry of the glossary is this term, or begins or ends with it."""
    term = term.lower()
    return any(word == term or word.startswith((f"{term} ", f"{term}-")) or term == f"{word}s" for word in WORDS)


def abbreviations(text):
    """Words with two capital letters or more, without code, maths, links and names in braces."""
    text = re.sub(r"`[^`]*`|\$[^$]*\$|\{[^}]*\}|\]\([^)]*\)|https?://\S+|<[^>]*>", " ", CODE.sub(" ", text))
    return set(re.findall(r"(?<![\w/.-])(?:[A-Za-z0-9]*[A-Z]){2}[A-Za-z0-9]*\b", text))


@pytest.mark.parametrize("name", [*WRITTEN, *NOTEBOOKS])
def test_every_abbreviation_is_in_the_glossary_or_known_to_everybody(name):
    unknown = {one for one in abbreviations(sentences_of(name)) if one not in KNOWN and not is_explained(one)}
    assert unknown == set()


@pytest.mark.parametrize("term", FIELD_TERMS)
def test_every_term_of_the_field_is_in_the_glossary(term):
    assert is_explained(term)


def test_the_glossary_is_in_the_order_of_the_alphabet_and_each_entry_explains():
    text = (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
    listed = re.findall(r"^(\S.*)\n  (\S[^\n]*)", text[text.index("```{glossary}") :], re.MULTILINE)
    names = [name.lower() for name, _ in listed]
    assert names == sorted(names) and len(names) > 60
    assert all(re.search(r"[.:,]|\w$", about) and len(about.split()) >= 5 for _, about in listed)

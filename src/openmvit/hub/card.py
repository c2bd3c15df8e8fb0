"""The model card of a folder: README.md written from what is known about the weights, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openmvit.hub.config import MViTV2Config

# End of a released file's tag, and what it was trained on.
_DATASETS = {
    "in1k": "imagenet-1k",
    "in21k": "imagenet-21k",
    "k400": "kinetics-400",
    "k600": "kinetics-600",
    "k700": "kinetics-700",
    "ssv2": "something-something-v2",
}
_PAPERS = {
    "mvitv1": (
        "Multiscale Vision Transformers",
        "Fan, Xiong, Mangalam, Li, Yan, Malik and Feichtenhofer",
        "2104.11227",
    ),
    "rev": (
        "Reversible Vision Transformers",
        "Mangalam, Fan, Li, Wu, Xiong, Feichtenhofer and Malik",
        "2302.04869",
    ),
    "maskfeat": (
        "Masked Feature Prediction for Self-Supervised Visual Pre-Training",
        "Wei, Fan, Xie, Wu, Yuille and Feichtenhofer",
        "2112.09133",
    ),
    "mvitv2": (
        "MViTv2: Improved Multiscale Vision Transformers for Classification and Detection",
        "Li, Wu, Fan, Mangalam, Xiong, Malik and Feichtenhofer",
        "2112.01526",
    ),
}
_YEARS = {"2104.11227": 2021, "2112.01526": 2022, "2302.04869": 2022, "2112.09133": 2022}
_MEASURED = ("score", "published", "note", "tag", "url", "data")
_PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")


def write_card(config: MViTV2Config, folder: str | Path) -> Path:
    """Write README.md into a folder whose processor, where it has one, is there already.

    Args:
        config: `config.about` holds what the checkpoint's card says: model, tag, licence, score, published, data, note.
    """
    folder, about = Path(folder), config.about
    parts = [f"# {about.get('model', 'MViTv2')}", _summary(config), _usage(config), _scores(about)]
    parts += [_preprocessing(folder), _licence(about), _citation(about)]
    text = f"---\n{_metadata(config)}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"
    path = folder / "README.md"
    path.write_text(text, encoding="utf-8")
    return path


def of_weights(about: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What is known about weights, without what was known of others: a score is of the weights it was measured with."""
    own = digest(state)
    kept = dict(about) if about.get("digest") == own else {k: v for k, v in about.items() if k not in _MEASURED}
    return kept | {"digest": own}


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode())
        found.update(memoryview(_bytes(state[name])))
    return found.hexdigest()


def _bytes(value: Tensor) -> Any:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def dataset(about: Mapping[str, Any]) -> str | None:
    """What the weights were trained on: of a released file by its tag, else the name of the user's data."""
    ends = [name for end, name in _DATASETS.items() if str(about.get("tag", "")).endswith(f"_{end}")]
    return ends[0] if ends else about.get("data")


def _task(config: MViTV2Config) -> str:
    return "image-classification" if len(config.input_size) == 2 else "video-classification"


def _metadata(config: MViTV2Config) -> str:
    """The card's front matter."""
    import yaml

    about, name = config.about, dataset(config.about)
    licence = str(about.get("licence") or "").lower()
    fields: dict[str, Any] = {"library_name": "openmvit", "pipeline_tag": _task(config), "tags": ["openmvit", "mvitv2"]}
    if licence:
        known = licence.startswith(("apache-", "bsd-", "cc-by-", "mit"))
        fields |= {"license": licence} if known else {"license": "other", "license_name": licence}
    if about.get("tag") and name:
        fields["datasets"] = [name]
    scores = _score_rows(about)
    if scores and about.get("tag") and name:
        metrics = [{"type": key, "value": value, "name": f"{key} ({origin})"} for key, value, origin in scores]
        result = {"task": {"type": _task(config)}, "dataset": {"name": name, "type": name}, "metrics": metrics}
        fields["model-index"] = [{"name": about.get("model", "mvitv2"), "results": [result]}]
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _summary(config: MViTV2Config) -> str:
    size, labels = " x ".join(map(str, config.input_size)), config.num_labels
    kind = "Images" if len(config.input_size) == 2 else "Clips"
    lines = [f"{kind}, nominal input {size}, {config.num_hidden_layers} blocks, {labels} classes."]
    source = config.about.get("source")
    if source:
        lines.append(f"Weights of {source}, file `{str(config.about.get('url', '')).rpartition('/')[2]}`.")
    if config.about.get("note"):
        lines.append(str(config.about["note"]))
    return " ".join(lines)


def _usage(config: MViTV2Config) -> str:
    task = _task(config)
    example = "picture.jpg" if task.startswith("image") else "video.mp4"
    code = [
        "import openmvit.hub  # registers the classes: no code is fetched from anywhere",
        "from transformers import pipeline",
        "",
        f'print(pipeline("{task}", model="THIS FOLDER")("{example}"))',
    ]
    return "\n".join(["## Use", "", "```python", *code, "```"])


def _score_rows(about: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Name, value and origin of every score."""
    rows = [(key, float(value), "published") for key, value in (about.get("published") or {}).items()]
    score = about.get("score") or {}
    if score.get("name") and isinstance(score.get("value"), int | float):
        rows.append((str(score["name"]), float(score["value"]), "validation split"))
    return rows


def _scores(about: Mapping[str, Any]) -> str:
    rows = _score_rows(about)
    if not rows:
        return "## Score\n\nNot measured."
    on = f" on {dataset(about)}" if dataset(about) else ""
    return "## Score\n\n" + "\n".join(f"- {key} {value:g}{on} ({origin})" for key, value, origin in rows)


def _preprocessing(folder: Path) -> str:
    files = [folder / name for name in _PROCESSORS if (folder / name).is_file()]
    if not files:
        return ""
    kept = json.loads(files[0].read_text(encoding="utf-8"))
    lines = [f"- {key}: {value}" for key, value in sorted(kept.items()) if not key.endswith("_type")]
    return "\n".join(["## Preprocessing", "", *lines])


def _licence(about: Mapping[str, Any]) -> str:
    return f"## Licence\n\n{about.get('licence') or 'Not stated.'}"


def _citation(about: Mapping[str, Any]) -> str:
    """The paper of the network."""
    name = str(about.get("model", "mvitv2"))
    title, authors, number = next((paper for key, paper in _PAPERS.items() if name.startswith(key)), _PAPERS["mvitv2"])
    key = f"{authors.split(',')[0].lower()}{_YEARS[number]}"
    lines = [f"  title = {{{title}}},", f"  author = {{{authors.replace(', ', ' and ')}}},"]
    lines += [f"  year = {{{_YEARS[number]}}},", f"  eprint = {{{number}}},", "  archivePrefix = {arXiv}"]
    return "\n".join(["## Citation", "", "```bibtex", f"@misc{{{key},", *lines, "}", "```"])

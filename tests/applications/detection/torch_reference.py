"""Torchvision's detectors as if trained: with random weights as they come, nothing would be found; and their files."""

import dataclasses
import hashlib
import re


def randomise(model, answers):
    """Frozen statistics, and answers that tell regions and classes apart.

    Args:
        model: A torch module; changed in place and returned.
        answers: `{part of a weight's name: deviation}` for its last layers; the first that fits counts.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        deviations = [deviation for part, deviation in answers.items() if part in name]
        if name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
            tensor.uniform_(0.5, 1.0, generator=generator)
        elif tensor.ndim == 1:
            tensor.normal_(0.0, 0.1, generator=generator)
        elif deviations:
            tensor.normal_(0.0, deviations[0], generator=generator)
    return model


# What torchvision's published files call otherwise than its modules do today; its modules take both.
OLDER_NAMES = [
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1."),
    (r"^rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    (r"^roi_heads\.mask_head\.(\d)\.0\.", lambda found: f"roi_heads.mask_head.mask_fcn{int(found[1]) + 1}."),
    (r"^(head\.\w+_head\.conv)\.(\d)\.0\.", lambda found: f"{found[1]}.{2 * int(found[2])}."),
]


def with_older_names(state):
    """A detector's state dict as its published file spells it."""
    older = {}
    for key, value in state.items():
        for pattern, name in OLDER_NAMES:
            key = re.sub(pattern, name, key)
        older[key] = value
    return older


def published(folder, row, path):
    """A row whose file lies here: `path`, moved to `folder` and named after its content."""
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    moved = path.rename(folder / f"{path.stem}-{digits}{path.suffix}")
    return dataclasses.replace(row, repository=folder.as_uri(), file=moved.name)

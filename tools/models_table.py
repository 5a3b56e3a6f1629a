"""Writes docs/models.md from `kvision.applications.list_models()`: python tools/models_table.py [path]"""

import inspect
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from kvision import applications
from kvision.weights import Published

HEAD = """# Networks

Made by `python tools/models_table.py` from `kvision.applications.list_models()`.

| builder | task | parameters | published weights | proved against | paper |
| --- | --- | ---: | --- | --- | --- |
"""

SAVED = """
## A saved model in another process

It carries what its images go through and, if you set them, the names of its classes (`model.class_names = ...`).

```python
import keras

import kvision  # registers the classes that the file names

model = keras.saving.load_model("flowers.keras")
scores = model.predict(model.preprocessing(images))
print(model.class_names[scores[0].argmax()])
```
"""

WEIGHTS = """
## Published weights

`weights="imagenet"` or another name below fetches the file on first use. Top-1 is on the 50,000 validation images of
ImageNet, AP and mean IoU (of VOC's 21 classes) on COCO's val2017, as published: by torchvision, for ViT by timm, for
EfficientDet by effdet, for DETR by its authors. After resizing, images go through `model.preprocessing`. A `.pth` file
needs torch to be read, `model.safetensors` needs `pip install 'kvision[weights]'`.

| network | name | percent | resizing | licence | file |
| --- | --- | --- | --- | --- | --- |
"""


def main():
    path = (
        pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent / "docs" / "models.md"
    )
    models = applications.list_models()
    rows = [
        f"| `{row.name}` | {row.task} | {row.parameters:,} | {', '.join(row.weights)} | {row.proof} | {row.paper} |"
        for row in models
    ]
    builders = [getattr(applications, row.name) for row in models]
    modules = list(dict.fromkeys(sys.modules[builder.__module__] for builder in builders))
    weights = [weights_line(*found) for module in modules for found in published(module)]
    path.write_text(HEAD + "\n".join(rows) + "\n" + WEIGHTS + "\n".join(weights) + "\n" + SAVED, encoding="utf-8")


def published(module):
    """(module, network, name, row) of all weights that an architecture's file names."""
    functions = [function for _, function in inspect.getmembers(module, inspect.isfunction)]
    builders = [f for f in functions if f.__module__ == module.__name__ and f.__name__[0].isupper()]
    family = max(builders, key=lambda builder: "variant" in inspect.signature(builder).parameters).__name__
    for key, value in getattr(module, "WEIGHTS", {}).items():
        if isinstance(value, Published):
            yield module, f"`{family}()`", key, value
            continue
        variant, _, form = key.partition(" with ")
        for name, row in value.items():
            yield module, f'`{family}("{variant}")`' + (f" with {form}" if form else ""), name, row


def weights_line(module, network, name, row):
    masks = f", masks {row.mask_ap} AP" if row.mask_ap else ""
    percent = {
        "classification": f"{row.accuracy:.3f} top-1",
        "detection": f"boxes {row.accuracy} AP{masks}",
        "segmentation": f"{row.accuracy} mean IoU",
    }[module.__name__.split(".")[-2]]
    address = f"{row.repository}/{row.file}" if "://" in row.repository else f"https://huggingface.co/{row.repository}"
    return f"| {network} | {name} | {percent} | {row.resizing} | {row.licence} | [{row.file}]({address}) |"


if __name__ == "__main__":
    main()

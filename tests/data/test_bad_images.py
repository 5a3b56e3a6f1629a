"""A thousand images of which fifty are bad in eight ways: what is reported is what was put in, and memory stays."""

import io
import pathlib
import zlib

import numpy as np
import PIL.Image
import pytest

from kvision.data import image_folder, read_image

pytestmark = pytest.mark.tensorflow_only

COUNT, BAD = 1000, 50


def encoded(kind, image):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def flipped(content, at):
    """The content with the bits of a byte flipped."""
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), "uint8")
PNG, JPEG = (encoded(kind, PIL.Image.fromarray(PIXELS)) for kind in ("PNG", "JPEG"))
HEAD = PNG[12:16] + (60_000).to_bytes(4, "big") * 2 + PNG[24:29]  # 60,000 x 60,000
BOMB = PNG[:12] + HEAD + zlib.crc32(HEAD).to_bytes(4, "big") + PNG[33:]
WAYS = {
    "empty": (b"", "the file is empty"),
    "page": (b"<html>not found</html>", "begins with b'<html>not fo'"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(40), "it is a HEIC file"),
    "header": (b"\xff\xd8\xff\xe0" + bytes(60), "header is damaged"),
    "bomb": (BOMB, "60000 x 60000 pixels"),
    "cut PNG": (PNG[: len(PNG) // 2], "PNG data are damaged"),
    "cut JPEG": (JPEG[:-100], "JPEG data are damaged"),
    "flipped PNG": (flipped(PNG, len(PNG) // 2), "PNG data are damaged"),
}
SEEN_IN_HEADER = ("empty", "page", "HEIC", "header", "bomb")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The images, and of each bad one the way and what is said of it."""
    root, injected = tmp_path_factory.mktemp("thousand"), {}
    for name in ("ants", "bees"):
        (root / name).mkdir()
    bad = np.random.default_rng(1).choice(COUNT, BAD, replace=False).tolist()
    for index in range(COUNT):
        path = root / ("ants", "bees")[index % 2] / f"{index}.{'jpg' if index % 3 else 'png'}"
        path.write_bytes(JPEG if index % 3 else PNG)
        if index in bad:
            way = list(WAYS)[bad.index(index) % len(WAYS)]
            content, reason = WAYS[way]
            path.write_bytes(content)
            injected[str(path)] = (way, reason)
    return root, injected


def told(dataset):
    return {problem.file: problem.reason for problem in dataset.problems}


@pytest.mark.parametrize("check", ["full", "header"])
def test_what_is_reported_is_what_was_put_in(folder, check):
    root, injected = folder
    dataset = image_folder(root, image_size=(16, 16), check=check, batch_size=100)
    before = injected if check == "full" else {f: w for f, w in injected.items() if w[0] in SEEN_IN_HEADER}
    assert told(dataset).keys() == before.keys()
    assert len(dataset.files) == COUNT - len(before)
    for _ in range(2):  # what the header did not show is told once
        assert sum(len(labels) for _, labels in dataset) == COUNT - BAD
        assert len(dataset.problems) == BAD
    for file, reason in told(dataset).items():
        assert injected[file][1] in reason, file


def peak():
    """The largest resident size since `forget`, in bytes."""
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def forget():
    pathlib.Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.parametrize("kind, options", [("PNG", {}), ("JPEG", {}), ("TIFF", {"compression": "tiff_adobe_deflate"})])
def test_a_bomb_takes_no_memory(tmp_path, kind, options):
    path = tmp_path / "bomb"
    PIL.Image.new("L", (9_500, 9_500)).save(path, kind, **options)
    assert path.stat().st_size < 2**21
    forget()
    before = peak()
    with pytest.raises(ValueError, match=r"9500 x 9500 pixels .* more than max_pixels = 89,000,000"):
        read_image(path)
    assert peak() - before < 64 * 2**20

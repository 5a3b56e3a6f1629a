"""Features of SDS (Hariharan et al. 2014, section 3.2): a network's, of regions, and a folder that keeps them."""

import hashlib
import io
import os
import pathlib
import tempfile
import warnings

import keras
import numpy as np

from kvision.applications.segmentation.sds_regions import region_crops


class RegionFeatures:
    """The joined penultimate features of regions, kept in a folder if there is one.

    Args:
        network: As `SDS` builds it.
        padding, mean: See `region_crops`.
        batch_size: Regions that the network sees at once.

    Attributes:
        size: Height and width of the crops.
        width: Number of features.

    ```python
    features = RegionFeatures(network, padding=16, mean=MEAN, batch_size=32)
    read = features.reader(FeatureCache("features"))
    read(image, masks)  # [n, features.width]
    ```
    """

    def __init__(self, network, padding, mean, batch_size):
        self._model = keras.Model(network.input, network.get_layer("features").output)
        self.size = tuple(network.input["boxes"].shape[1:3])
        self.width = self._model.output.shape[-1]
        self._padding, self._mean, self._batch_size = padding, mean, batch_size

    def reader(self, cache):
        """A function of an image [h, w, 3] and masks [n, h, w] bool; the weights of the network are read now, once."""
        if cache is None:
            return self._compute
        settings = hashlib.blake2b(str((self.size, self._padding, np.ravel(self._mean).tolist())).encode())
        for weight in self._model.get_weights():
            _update(settings, weight)

        def read(image, masks):
            digest = settings.copy()
            for part in (image, np.packbits(masks), np.array(masks.shape)):
                _update(digest, part)
            key = digest.hexdigest()[:32]
            features = cache.read(key)
            if features is None:
                features = self._compute(image, masks)
                cache.write(key, features)
            return features

        return read

    def _compute(self, image, masks):
        features = []
        for start in range(0, len(masks), self._batch_size):
            rows = np.arange(start, start + self._batch_size)
            rows = np.minimum(rows, len(masks) - 1)  # one size of batch, as each other would be compiled anew
            crops = region_crops(image, masks[rows], self.size, self._padding, self._mean)
            features.append(np.asarray(self._model.predict_on_batch(crops), "float32"))
        return np.concatenate(features)[: len(masks)]


class FeatureCache:
    """Arrays in a folder, a file each, with a checksum; a file that is damaged is told and counts as missing.

    Args:
        directory: The folder, made if it does not exist.

    ```python
    cache = FeatureCache("features")
    cache.write("a", np.arange(3.0))
    cache.read("a")
    ```
    """

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)

    def path(self, key):
        return self.directory / f"{key}.features"

    def read(self, key):
        """The array of a key; None if there is none, or not a whole one."""
        try:
            content = self.path(key).read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.blake2b(content[16:], digest_size=16).digest() != content[:16]:
            warnings.warn(f"{self.path(key)} is damaged: the features are computed again.", stacklevel=2)
            return None
        return np.load(io.BytesIO(content[16:]), allow_pickle=False)

    def write(self, key, array):
        """Keep an array; a reader finds all of it or nothing."""
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        content = content.getvalue()
        write_whole(self.path(key), hashlib.blake2b(content, digest_size=16).digest() + content)


def write_whole(path, content):
    """A file whose content comes all at once."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def _update(digest, array):
    array = np.ascontiguousarray(array)
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    digest.update(array.view("uint8").reshape(-1) if array.size else b"")

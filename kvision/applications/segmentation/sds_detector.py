"""SDS as a whole (Hariharan et al. 2014): features on disk, one SVM a class, suppression by regions, refined masks.

The SVMs are trained as in R-CNN (Girshick et al. 2014, section 2.3 and appendix B): features scaled to a mean norm of
20, objects themselves as positives, and in one pass over the images the negatives that the SVMs of the images before
do not reject.
"""

import contextlib
import io
import pathlib
import tempfile
import zipfile

import keras
import numpy as np

from kvision.applications.segmentation.multiscale_net import superpixels
from kvision.applications.segmentation.sds import LabelledRegions
from kvision.applications.segmentation.sds_features import FeatureCache, RegionFeatures, write_whole
from kvision.applications.segmentation.sds_refinement import CELLS, coarse_mask, refined_mask, train_refinement
from kvision.applications.segmentation.sds_regions import (
    MEAN,
    checked_image,
    checked_masks,
    region_boxes,
    region_proposals,
    suppress_regions,
)
from kvision.errors import checked_names

FEATURE_NORM = 20.0
HARD_MARGIN, EASY_MARGIN = -1.0, -1.2  # negatives above the first are kept, those below the second dropped again
RETRAIN_AFTER = 2000  # negatives that came in
ARRAYS = ("svm_weights", "svm_biases", "cell_weights", "cell_biases", "superpixel_classifier")


class SDSDetector:
    """Detect objects and their masks: a trained network of `SDS`, and all that stands behind it.

    It is no Keras model: save the network by `network.save`, and the rest by `save`.

    Args:
        network: As `SDS` builds it, trained with `RegionBatches` or not.
        cache: A folder for the features, one file for an image and its regions, found by the content of both, the
            weights of the network and the crops; a network with another `preprocess` needs another folder. A second
            `fit`, or `detect` on the same regions, then runs no network. An image with 2,000 regions takes 66 MB with
            the paper's network. None keeps none.
        padding, mean: See `region_crops`.
        batch_size: Regions that the network sees at once.
        regularization: The SVMs' C, > 0.
        negative_iou: A region is a negative of a class whose objects it overlaps by at most this, in [0, 1).
        nms_threshold: See `suppress_regions`.
        score_threshold: Detections of a lower score are left out, in [0, 1]; at 0.5 an SVM cannot decide.
        num_detections: Of an image, at most.
        verbose: 1 shows the progress, 0 does not.

    Raises:
        ValueError: on numbers out of range, and a model that is not of `SDS`.

    ```python
    detector = kvision.applications.SDSDetector(network, cache="features")
    detector.fit(images, targets, [region_proposals(image) for image in images])
    detector.detect(photo)["masks"]  # [k, h, w]
    ```
    """

    def __init__(
        self,
        network,
        *,
        cache=None,
        padding=16,
        mean=MEAN,
        batch_size=32,
        regularization=1e-3,
        negative_iou=0.2,
        nms_threshold=0.0,
        score_threshold=0.05,
        num_detections=100,
        verbose=1,
    ):
        names = {layer.name for layer in getattr(network, "layers", ())}
        if not {"boxes", "regions", "features", "classifier"} <= names:
            raise ValueError(f"SDSDetector needs a network of `SDS`, with its top: got {network!r}.")
        fractions = (negative_iou, nms_threshold, score_threshold)
        if min(batch_size, num_detections) < 1 or regularization <= 0 or not all(0 <= x <= 1 for x in fractions):
            raise ValueError(
                "SDSDetector: batch_size and num_detections are at least 1, regularization is above 0, negative_iou, "
                f"nms_threshold and score_threshold lie in [0, 1]: got {batch_size}, {num_detections}, "
                f"{regularization} and {fractions}."
            )
        self.network, self.classes = network, network.output.shape[-1] - 1
        self.class_names = checked_names("SDSDetector", getattr(network, "class_names", None), self.classes)
        self.cache = None if cache is None else FeatureCache(cache)
        self.regularization, self.negative_iou = regularization, negative_iou
        self.nms_threshold, self.score_threshold = nms_threshold, score_threshold
        self.num_detections, self.verbose = num_detections, verbose
        self.arrays = None
        self._features = RegionFeatures(network, padding, mean, batch_size)

    def features(self, image, masks):
        """The joined features of regions: [h, w, 3] in 0…255 and [n, h, w] bool → [n, d] float32."""
        image = checked_image(image, "SDSDetector")
        masks = checked_masks(masks, image.shape[:2], "SDSDetector")
        return self._features.reader(self.cache)(image, masks)

    def fit(self, images, targets, proposals):
        """Train the SVMs, then the refinement of the masks, on the features of the network as it is.

        Args:
            images, targets, proposals: See `LabelledRegions`.

        Returns:
            The detector.

        Raises:
            ImportError: without scikit-learn and scikit-image (`pip install 'kvision[classic]'`).
            ValueError: as `LabelledRegions`, and on classes without an object or without a region that is none of it.
        """
        _require_classic()
        regions = LabelledRegions("SDSDetector.fit", images, targets, proposals, self.classes)
        missing = sorted(set(range(self.classes)) - {int(label) for labels in regions.labels for label in labels})
        if missing:
            raise ValueError(
                f"SDSDetector.fit: the classes {missing} of 0…{self.classes - 1} have no object in {len(regions)} "
                "images. Add images of them, or build the network for fewer classes."
            )
        with contextlib.ExitStack() as stack:
            cache = self.cache or FeatureCache(stack.enter_context(tempfile.TemporaryDirectory()))
            read = self._features.reader(cache)

            def features_of(index):
                return read(checked_image(images[index], "SDSDetector.fit"), regions.masks(index))

            norms = [np.linalg.norm(features_of(index), axis=1) for index in self._progress(len(regions))]
            scale = 1.0 / max(float(np.concatenate(norms).mean()), 1e-12)
            weights, biases = self._train_svms(features_of, regions, FEATURE_NORM * scale)
            arrays = {"svm_weights": weights, "svm_biases": biases}
            arrays |= train_refinement(features_of, regions, self.classes, scale, self._progress)
        self.arrays = arrays
        return self

    def _progress(self, count, unit="image"):
        """0…count−1, shown as they go."""
        bar = keras.utils.Progbar(count, unit_name=unit, verbose=self.verbose)
        for index in range(count):
            yield index
            bar.update(index + 1)

    def _train_svms(self, features_of, regions, scale):
        """Weights [d, classes] and biases [classes] for features as they are, by one pass of hard negative mining."""
        positives = [[] for _ in range(self.classes)]
        for index, labels in enumerate(regions.labels):
            features = features_of(index)[: len(labels)] * scale if len(labels) else ()
            for label, row in zip(labels, features, strict=True):
                positives[label].append(row)
        positives = [np.stack(rows) for rows in positives]
        negatives = [[] for _ in range(self.classes)]
        weights = biases = None
        added = 0
        for index in self._progress(len(regions)):
            features = features_of(index) * scale
            margins = None if weights is None else features @ weights + biases
            for label in range(self.classes):
                chosen = regions.class_overlaps(index, label) <= self.negative_iou
                chosen &= ~regions.ignored[index]
                if margins is not None:
                    chosen &= margins[:, label] > HARD_MARGIN
                negatives[label].append(features[chosen])
                added += np.count_nonzero(chosen)
            enough = added > RETRAIN_AFTER and all(any(map(len, rows)) for rows in negatives)
            if enough or index == len(regions) - 1:
                negatives = [np.concatenate(rows) for rows in negatives]
                weights, biases = self._fit_svms(positives, negatives)
                negatives = [
                    [rows[rows @ weights[:, label] + biases[label] >= EASY_MARGIN]]
                    for label, rows in enumerate(negatives)
                ]
                added = 0
        return weights * scale, biases

    def _fit_svms(self, positives, negatives):
        from sklearn.svm import LinearSVC

        weights, biases = [], []
        for label, (objects, others) in enumerate(zip(positives, negatives, strict=True)):
            if not len(others):
                raise ValueError(
                    f"SDSDetector.fit: class {label} has no negative: every region overlaps one of its objects by more "
                    f"than negative_iou={self.negative_iou}. Add proposals of the background."
                )
            model = LinearSVC(
                C=self.regularization,
                loss="hinge",
                class_weight={1: 2.0},
                intercept_scaling=10.0,
                max_iter=100_000,
                random_state=0,
            )
            model.fit(np.concatenate([objects, others]), np.repeat([1, 0], [len(objects), len(others)]))
            weights.append(model.coef_[0])
            biases.append(model.intercept_[0])
        return np.stack(weights, axis=1).astype("float32"), np.array(biases, "float32")

    def margins(self, features):
        """What the SVMs say of regions: [n, d] → [n, classes], above 0 for the class."""
        self._require_fitted()
        return features @ self.arrays["svm_weights"] + self.arrays["svm_biases"]

    def detect(self, images, proposals=None):
        """What is in images, each with its mask.

        Args:
            images: A list of arrays [h, w, 3] in 0…255, or one of them.
            proposals: For each image [m, h, w] bool; None takes `region_proposals`.

        Returns:
            A dict for each image (for one image the dict alone), its k detections by falling score: `"boxes"` [k, 4]
            around the masks; `"scores"` [k], the logistic function of the SVMs' margins; `"labels"` [k]; `"masks"`
            [k, h, w] uint8, refined; `"names"`, a list of k, if the network has `class_names`.

        Raises:
            ValueError: before `fit` or `load`, on other numbers of proposals than images, and on masks as in `fit`.
        """
        self._require_fitted()
        one = not isinstance(images, list | tuple) and np.ndim(images) == 3
        if one:
            images, proposals = [images], None if proposals is None else [proposals]
        if proposals is not None and len(proposals) != len(images):
            raise ValueError(
                f"SDSDetector.detect: got {len(images)} images and proposals for {len(proposals)}. Give an array "
                "[m, h, w] for each, or none at all."
            )
        read, found = self._features.reader(self.cache), []
        for index in self._progress(len(images)):
            name = f"SDSDetector.detect, image {index}"
            image = checked_image(images[index], name)
            masks = region_proposals(image) if proposals is None else proposals[index]
            found.append(self._detect(image, checked_masks(masks, image.shape[:2], name), read))
        return found[0] if one else found

    def _detect(self, image, masks, read):
        features = read(image, masks)
        scores = 1.0 / (1.0 + np.exp(-np.clip(self.margins(features), -80, 80)))
        rows, labels = [], []
        for label in range(self.classes):
            (able,) = np.nonzero(scores[:, label] >= self.score_threshold)
            if len(able):
                kept = suppress_regions(masks[able], scores[able, label], self.nms_threshold, self.num_detections)
                rows += able[kept].tolist()
                labels += [label] * len(kept)
        rows, labels = np.array(rows, int), np.array(labels, "int32")
        order = np.argsort(-scores[rows, labels], kind="stable")[: self.num_detections]
        rows, labels = rows[order], labels[order]
        refined = np.zeros((len(rows), *image.shape[:2]), bool)
        areas = superpixels(image) if len(rows) else None
        for mask, row, label in zip(refined, rows, labels, strict=True):
            grid = coarse_mask(self.arrays, features[row], label)
            mask[:] = refined_mask(grid, masks[row], areas, self.arrays["superpixel_classifier"])
        found = {
            "boxes": region_boxes(refined).astype("float32"),
            "scores": scores[rows, labels].astype("float32"),
            "labels": labels,
            "masks": refined.astype("uint8"),
        }
        if self.class_names is not None:
            found["names"] = [self.class_names[label] for label in labels]
        return found

    def _require_fitted(self):
        if self.arrays is None:
            raise ValueError("SDSDetector: its SVMs are not trained. Call `fit`, or `load` what `save` wrote.")

    def save(self, path):
        """Write what `fit` found, arrays without pickle; the network is saved by `network.save`."""
        self._require_fitted()
        content = io.BytesIO()
        np.savez(content, **self.arrays)
        write_whole(pathlib.Path(path), content.getvalue())

    def load(self, path):
        """Take what `save` wrote; returns the detector.

        Raises:
            ValueError: on another file, or arrays of another network.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ARRAYS}
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"SDSDetector.load: {path} is not what `SDSDetector.save` wrote: {error}.") from None
        got = arrays["svm_weights"].shape
        expected = self._features.width, self.classes
        if got != expected or arrays["cell_weights"].shape != (self.classes, expected[0], CELLS**2):
            raise ValueError(
                f"SDSDetector.load: the SVMs of {path} are {got}, features by classes, those of this network "
                f"{expected}. Build the network that they were trained with."
            )
        self.arrays = arrays
        return self


def _require_classic():
    try:
        import skimage  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError:
        raise ImportError(
            "SDS trains by scikit-learn, on superpixels of scikit-image: pip install 'kvision[classic]'"
        ) from None

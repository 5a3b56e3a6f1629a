"""The features of regions as layers: RoIAlign (He 2017), RoI max pooling (Girshick 2015), RoI warping (Dai 2016)."""

import numbers

import keras
from keras import ops

from kvision.ops.roi import multilevel_roi_align, pyramid_levels, roi_align, roi_pool, roi_warp


class _Regions(keras.layers.Layer):
    """A layer of (features, boxes). Boxes keep their float32 whatever the policy; features get the compute dtype."""

    def __init__(self, output_size, spatial_scale, **options):
        super().__init__(autocast=False, **options)
        if not isinstance(output_size, numbers.Integral) or output_size < 1:
            raise ValueError(
                f"{type(self).__name__}: output_size is one whole number, the bins along each side of a region: got "
                f"{output_size!r}. Of 7x7 bins, pass 7."
            )
        if spatial_scale is not None and not 0 < spatial_scale <= 1:
            raise ValueError(
                f"{type(self).__name__}: spatial_scale is in cells of the map per pixel of the image, above 0 and at "
                f"most 1: got {spatial_scale!r}. Of a map of stride 16, pass 1 / 16."
            )
        self.output_size = int(output_size)
        self.spatial_scale = spatial_scale

    def compute_output_shape(self, features_shape, boxes_xyxy_shape):
        self._check(isinstance(features_shape, dict))
        if isinstance(features_shape, dict):
            features_shape = features_shape[f"P{pyramid_levels(features_shape)[0]}"]
        return (*boxes_xyxy_shape[:2], self.output_size, self.output_size, features_shape[-1])

    def _check(self, is_pyramid):
        """Raises unless the scale is that of the one map, or there is a pyramid, whose levels say it."""
        if is_pyramid and self.spatial_scale is not None:
            raise ValueError(
                f"{self.name}: got a pyramid, whose levels say their scale, and spatial_scale={self.spatial_scale}: "
                "leave it out, or pass one map."
            )
        if not is_pyramid and self.spatial_scale is None:
            raise ValueError(
                f"{self.name}: one map needs spatial_scale, its cells per pixel of the image: got none. Pass "
                f'{type(self).__name__}({self.output_size}, spatial_scale=1 / stride), or a pyramid {{"P2": map, …}}.'
            )

    def get_config(self):
        config = super().get_config()
        config.pop("autocast", None)
        return config | {"output_size": self.output_size, "spatial_scale": self.spatial_scale}


@keras.saving.register_keras_serializable("kvision")
class RoIAlign(_Regions):
    """The features inside each box, read between the cells: "Mask R-CNN" (He et al. 2017), section 3.

    Args:
        output_size: Bins along each side of a region.
        spatial_scale: Cells per pixel, 1/stride of the map; None when the features are a pyramid, whose level names
            say it.
        sampling_ratio: Samples along each side of a bin, ≥ 1.
        aligned: Half-pixel alignment; False is that of torchvision's detectors. See `kvision.ops.roi_align`.

    Call: `layer(features, boxes_xyxy)`; features [b, h, w, c], or `{"P2": …, "P3": …}` with neighbouring levels, each
    box read from the level of its size; boxes [b, n, 4] in pixels. Gives [b, n, output_size, output_size, c].

    Raises:
        ValueError: if one map comes without `spatial_scale`, or a pyramid with it.

    >>> layer = RoIAlign(7, spatial_scale=1 / 16)
    >>> tuple(layer(keras.ops.ones((2, 32, 32, 8)), keras.ops.ones((2, 5, 4))).shape)
    (2, 5, 7, 7, 8)
    """

    def __init__(self, output_size, spatial_scale=None, sampling_ratio=2, aligned=True, **options):
        super().__init__(output_size, spatial_scale, **options)
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def call(self, features, boxes_xyxy):
        features = keras.tree.map_structure(lambda feature: ops.cast(feature, self.compute_dtype), features)
        shared = {"sampling_ratio": self.sampling_ratio, "aligned": self.aligned}
        self._check(isinstance(features, dict))
        if isinstance(features, dict):
            return multilevel_roi_align(features, boxes_xyxy, self.output_size, **shared)
        return roi_align(features, boxes_xyxy, self.output_size, self.spatial_scale, **shared)

    def get_config(self):
        return super().get_config() | {"sampling_ratio": self.sampling_ratio, "aligned": self.aligned}


@keras.saving.register_keras_serializable("kvision")
class RoIPooling(_Regions):
    """The largest feature of every bin of each box: "Fast R-CNN" (Girshick 2015), section 2.1.

    Args:
        output_size: Bins along each side of a region.
        spatial_scale: Cells per pixel, 1/stride of the map.

    Call: `layer(features, boxes_xyxy)`; features [b, h, w, c], boxes [b, n, 4] in pixels. Gives
    [b, n, output_size, output_size, c].

    >>> layer = RoIPooling(7, spatial_scale=1 / 16)
    >>> tuple(layer(keras.ops.ones((2, 32, 32, 8)), keras.ops.ones((2, 5, 4))).shape)
    (2, 5, 7, 7, 8)
    """

    def __init__(self, output_size, spatial_scale, **options):
        super().__init__(output_size, spatial_scale, **options)

    def call(self, features, boxes_xyxy):
        return roi_pool(ops.cast(features, self.compute_dtype), boxes_xyxy, self.output_size, self.spatial_scale)


@keras.saving.register_keras_serializable("kvision")
class RoIWarp(_Regions):
    """The features inside each box, warped to one size, with a gradient for the box: Dai et al. 2016, section 4.

    See `kvision.ops.roi_warp`. The maxima that the paper pools afterwards are a `MaxPooling2D(2)` of the regions.

    Args:
        output_size: Cells along each side of a region.
        spatial_scale: Cells per pixel, 1/stride of the map.

    Call: `layer(features, boxes_xyxy)`; features [b, h, w, c], boxes [b, n, 4] in pixels. Gives
    [b, n, output_size, output_size, c].

    >>> layer = RoIWarp(14, spatial_scale=1 / 16)
    >>> tuple(layer(keras.ops.ones((2, 32, 32, 8)), keras.ops.ones((2, 5, 4))).shape)
    (2, 5, 14, 14, 8)
    """

    def __init__(self, output_size, spatial_scale, **options):
        super().__init__(output_size, spatial_scale, **options)

    def call(self, features, boxes_xyxy):
        return roi_warp(ops.cast(features, self.compute_dtype), boxes_xyxy, self.output_size, self.spatial_scale)

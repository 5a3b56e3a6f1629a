"""How good detections and label maps are, as the benchmarks of the field count it."""

from kvision.metrics.boundary_iou import BoundaryIoU as BoundaryIoU
from kvision.metrics.coco_ap import COCOAveragePrecision as COCOAveragePrecision
from kvision.metrics.exposure_count import ExposureCount as ExposureCount
from kvision.metrics.mean_iou import MeanIoU as MeanIoU
from kvision.metrics.mean_iou import PixelAccuracy as PixelAccuracy
from kvision.metrics.voc_ap import VOCAveragePrecision as VOCAveragePrecision

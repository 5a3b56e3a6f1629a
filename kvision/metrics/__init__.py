"""How good detections are, as the benchmarks of the field count it."""

from kvision.metrics.coco_ap import COCOAveragePrecision as COCOAveragePrecision
from kvision.metrics.exposure_count import ExposureCount as ExposureCount
from kvision.metrics.voc_ap import VOCAveragePrecision as VOCAveragePrecision

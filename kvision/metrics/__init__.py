"""How good detections and label maps are, as the benchmarks of the field count it."""

from kvision.metrics.boundary_iou import BoundaryIoU as BoundaryIoU
from kvision.metrics.calibration import Calibration as Calibration
from kvision.metrics.calibration import ExpectedCalibrationError as ExpectedCalibrationError
from kvision.metrics.coco_ap import COCOAveragePrecision as COCOAveragePrecision
from kvision.metrics.detection_errors import DetectionErrors as DetectionErrors
from kvision.metrics.error_kinds import ERROR_KINDS as ERROR_KINDS
from kvision.metrics.error_kinds import ImageErrors as ImageErrors
from kvision.metrics.exposure_count import ExposureCount as ExposureCount
from kvision.metrics.mean_iou import MeanIoU as MeanIoU
from kvision.metrics.mean_iou import PixelAccuracy as PixelAccuracy
from kvision.metrics.voc_ap import VOCAveragePrecision as VOCAveragePrecision

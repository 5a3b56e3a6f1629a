"""What detectors share: the model, and the parts that builders put together."""

from kvision.detection.detector import Detector as Detector

"""What watches, steers and records a run, while `fit` does the training."""

from kvision.callbacks.detection_images import DetectionImages as DetectionImages
from kvision.callbacks.detection_metrics import DetectionMetrics as DetectionMetrics
from kvision.callbacks.exposure import Exposure as Exposure
from kvision.callbacks.interpretation_images import InterpretationImages as InterpretationImages
from kvision.callbacks.learning_rate import LearningRate as LearningRate
from kvision.callbacks.plateau import ReduceOnPlateau as ReduceOnPlateau
from kvision.callbacks.progress import Progress as Progress
from kvision.callbacks.resume import Resume as Resume
from kvision.callbacks.rollback import Diverged as Diverged
from kvision.callbacks.rollback import Rollback as Rollback
from kvision.callbacks.segmentation_images import SegmentationImages as SegmentationImages
from kvision.callbacks.vitals.dead_relu import DeadReLU as DeadReLU
from kvision.callbacks.vitals.gradient_norm import GradientNorm as GradientNorm
from kvision.callbacks.vitals.gradient_to_weight import GradientToWeight as GradientToWeight
from kvision.callbacks.vitals.precision_health import PrecisionHealth as PrecisionHealth
from kvision.callbacks.vitals.saturation import Saturation as Saturation
from kvision.callbacks.vitals.throughput import Throughput as Throughput
from kvision.callbacks.vitals.update_ratio import UpdateRatio as UpdateRatio
from kvision.callbacks.vitals.vital import Vital as Vital
from kvision.callbacks.vitals.vitals import Vitals as Vitals
from kvision.trackers.report import Report as Report
from kvision.trackers.run_history import RunHistory as RunHistory
from kvision.trackers.run_history import read_history as read_history
from kvision.trackers.wandb_logger import WandbLogger as WandbLogger

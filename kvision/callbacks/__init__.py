"""What watches, steers and records a run, while `fit` does the training."""

from kvision.callbacks.dead_relu import DeadReLU as DeadReLU
from kvision.callbacks.detection_images import DetectionImages as DetectionImages
from kvision.callbacks.detection_metrics import DetectionMetrics as DetectionMetrics
from kvision.callbacks.exposure import Exposure as Exposure
from kvision.callbacks.gradient_norm import GradientNorm as GradientNorm
from kvision.callbacks.learning_rate import LearningRate as LearningRate
from kvision.callbacks.plateau import ReduceOnPlateau as ReduceOnPlateau
from kvision.callbacks.progress import Progress as Progress
from kvision.callbacks.report import Report as Report
from kvision.callbacks.run_history import RunHistory as RunHistory
from kvision.callbacks.run_history import read_history as read_history
from kvision.callbacks.update_ratio import UpdateRatio as UpdateRatio
from kvision.callbacks.vitals import Vitals as Vitals
from kvision.callbacks.wandb_logger import WandbLogger as WandbLogger

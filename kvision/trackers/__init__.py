"""What records a run: the tracker's base, history, report, W&B; and what is recorded."""

from kvision.trackers.events import Advice as Advice
from kvision.trackers.events import Images as Images
from kvision.trackers.events import Measurement as Measurement
from kvision.trackers.events import Overlay as Overlay
from kvision.trackers.report import Report as Report
from kvision.trackers.run_history import RunHistory as RunHistory
from kvision.trackers.run_history import read_history as read_history
from kvision.trackers.tracker import Tracker as Tracker
from kvision.trackers.wandb_logger import WandbLogger as WandbLogger

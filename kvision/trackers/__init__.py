"""What records a run: the tracker's base, history, report, W&B."""

from kvision.trackers.report import Report as Report
from kvision.trackers.run_history import RunHistory as RunHistory
from kvision.trackers.run_history import read_history as read_history
from kvision.trackers.tracker import Tracker as Tracker
from kvision.trackers.wandb_logger import WandbLogger as WandbLogger

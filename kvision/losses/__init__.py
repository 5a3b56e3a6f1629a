from kvision.losses.focal import sigmoid_focal_loss as sigmoid_focal_loss
from kvision.losses.giou import GIoULoss as GIoULoss
from kvision.losses.giou import giou_loss as giou_loss
from kvision.losses.smooth_l1 import smooth_l1_loss as smooth_l1_loss

"""What detectors share: the model, and the parts that builders put together."""

from kvision.detection.anchors import Anchors as Anchors
from kvision.detection.assigner import Assigner as Assigner
from kvision.detection.box_branch import BoxBranch as BoxBranch
from kvision.detection.dense_head import DenseDecoder as DenseDecoder
from kvision.detection.dense_head import DenseHead as DenseHead
from kvision.detection.detector import Detector as Detector
from kvision.detection.grid_head import GridHead as GridHead
from kvision.detection.mask_branch import MaskBranch as MaskBranch
from kvision.detection.network_cascade import NetworkCascadeHead as NetworkCascadeHead
from kvision.detection.proposals import GivenProposals as GivenProposals
from kvision.detection.proposals import RegionProposals as RegionProposals
from kvision.detection.set_head import SetHead as SetHead
from kvision.detection.two_stage import TwoStageHead as TwoStageHead

"""Looking inside a trained model: what its units see, where its scores come from, and what fools it."""

from kvision.visualize import adversarial as adversarial
from kvision.visualize.activation_maximization import activation_maximization as activation_maximization
from kvision.visualize.deconvnet import deconvnet as deconvnet
from kvision.visualize.deep_dream import deep_dream as deep_dream
from kvision.visualize.descent import OptimizedImages as OptimizedImages
from kvision.visualize.grad_cam import grad_cam as grad_cam
from kvision.visualize.gradient import gradient as gradient
from kvision.visualize.gradient import saliency_map as saliency_map
from kvision.visualize.gradient import smooth_grad as smooth_grad
from kvision.visualize.guided_backprop import guided_backprop as guided_backprop
from kvision.visualize.insertion_deletion import InsertionDeletion as InsertionDeletion
from kvision.visualize.insertion_deletion import insertion_deletion as insertion_deletion
from kvision.visualize.integrated_gradients import integrated_gradients as integrated_gradients
from kvision.visualize.invert_features import invert_features as invert_features
from kvision.visualize.occlusion import occlusion as occlusion
from kvision.visualize.places import find_place as find_place
from kvision.visualize.places import places as places
from kvision.visualize.probe import Look as Look
from kvision.visualize.probe import Probe as Probe
from kvision.visualize.randomization import RandomizationTest as RandomizationTest
from kvision.visualize.randomization import randomization_test as randomization_test
from kvision.visualize.saliency_segmentation import segment_by_saliency as segment_by_saliency
from kvision.visualize.style_transfer import style_transfer as style_transfer

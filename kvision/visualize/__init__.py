"""Looking inside a trained model: what its units see, where its scores come from, and what fools it.

Each technique is a function on any built `keras.Model`, which it leaves as it is; `help` of one tells its arguments.

- What units look for: `first_layer_filters`, `maximally_activating_patches` (gives `ActivatingPatches`).
- Images made by optimisation (give `OptimizedImages`): `activation_maximization`, `invert_features`, `deep_dream`,
  `style_transfer`.
- Which images a layer holds to be alike: `tsne` (gives an `Embedding`), `grid_cells`.
- Where a score comes from: `gradient`, `saliency_map`, `smooth_grad`, `integrated_gradients`, `guided_backprop`,
  `deconvnet`, `grad_cam`, `occlusion`; `segment_by_saliency` makes a mask of it.
- Whether such a map can be trusted: `insertion_deletion` (gives `InsertionDeletion`), `randomization_test` (gives a
  `RandomizationTest`).
- What fools a model: the module `adversarial`.
- What it gets wrong on a data set: `Interpretation`, which makes a `ClassifierInterpretation` (with `TopLoss`,
  `Confused`) or a `DetectorInterpretation` (with `WorstImage`).
- Layers by name at any depth and what they see: `places`, `find_place`, `receptive_field`.
- For techniques of one's own: `Probe`, which gives a `Look`.
"""

from kvision.visualize import adversarial as adversarial
from kvision.visualize.activation_maximization import activation_maximization as activation_maximization
from kvision.visualize.classifier_interpretation import ClassifierInterpretation as ClassifierInterpretation
from kvision.visualize.classifier_interpretation import Confused as Confused
from kvision.visualize.classifier_interpretation import TopLoss as TopLoss
from kvision.visualize.deconvnet import deconvnet as deconvnet
from kvision.visualize.deep_dream import deep_dream as deep_dream
from kvision.visualize.descent import OptimizedImages as OptimizedImages
from kvision.visualize.detector_interpretation import DetectorInterpretation as DetectorInterpretation
from kvision.visualize.detector_interpretation import WorstImage as WorstImage
from kvision.visualize.first_layer_filters import first_layer_filters as first_layer_filters
from kvision.visualize.grad_cam import grad_cam as grad_cam
from kvision.visualize.gradient import gradient as gradient
from kvision.visualize.gradient import saliency_map as saliency_map
from kvision.visualize.gradient import smooth_grad as smooth_grad
from kvision.visualize.guided_backprop import guided_backprop as guided_backprop
from kvision.visualize.insertion_deletion import InsertionDeletion as InsertionDeletion
from kvision.visualize.insertion_deletion import insertion_deletion as insertion_deletion
from kvision.visualize.integrated_gradients import integrated_gradients as integrated_gradients
from kvision.visualize.interpretation import Interpretation as Interpretation
from kvision.visualize.invert_features import invert_features as invert_features
from kvision.visualize.maximally_activating_patches import ActivatingPatches as ActivatingPatches
from kvision.visualize.maximally_activating_patches import maximally_activating_patches as maximally_activating_patches
from kvision.visualize.occlusion import occlusion as occlusion
from kvision.visualize.places import find_place as find_place
from kvision.visualize.places import places as places
from kvision.visualize.probe import Look as Look
from kvision.visualize.probe import Probe as Probe
from kvision.visualize.randomization import RandomizationTest as RandomizationTest
from kvision.visualize.randomization import randomization_test as randomization_test
from kvision.visualize.receptive_field import receptive_field as receptive_field
from kvision.visualize.saliency_segmentation import segment_by_saliency as segment_by_saliency
from kvision.visualize.style_transfer import style_transfer as style_transfer
from kvision.visualize.tsne import Embedding as Embedding
from kvision.visualize.tsne import grid_cells as grid_cells
from kvision.visualize.tsne import tsne as tsne

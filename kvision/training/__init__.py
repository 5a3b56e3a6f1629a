"""What happens around `fit`."""

from kvision.diagnosis import Diagnosis as Diagnosis
from kvision.diagnosis import LayerReading as LayerReading
from kvision.training.describe import Description as Description
from kvision.training.describe import LayerCost as LayerCost
from kvision.training.describe import describe as describe
from kvision.training.gradients import GradientCheck as GradientCheck
from kvision.training.gradients import GradientProbe as GradientProbe
from kvision.training.gradients import check_gradients as check_gradients
from kvision.training.initial_loss import InitialLoss as InitialLoss
from kvision.training.initial_loss import check_initial_loss as check_initial_loss
from kvision.training.initialisations import ActivationStatistics as ActivationStatistics
from kvision.training.initialisations import InitialisationComparison as InitialisationComparison
from kvision.training.initialisations import compare_initialisations as compare_initialisations
from kvision.training.learning_rate import LearningRateRange as LearningRateRange
from kvision.training.learning_rate import find_learning_rate as find_learning_rate
from kvision.training.overfit import OverfitBatch as OverfitBatch
from kvision.training.overfit import overfit_one_batch as overfit_one_batch
from kvision.training.preflight import Preflight as Preflight
from kvision.training.preflight import preflight as preflight
from kvision.training.replay import replay as replay
from kvision.training.transfer import TransferRecipe as TransferRecipe
from kvision.training.transfer import freeze as freeze
from kvision.training.transfer import transfer_recipe as transfer_recipe
from kvision.training.verdict import Verdict as Verdict

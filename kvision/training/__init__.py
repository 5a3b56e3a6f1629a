"""What happens around `fit`."""

from kvision.diagnosis import Diagnosis as Diagnosis
from kvision.diagnosis import LayerReading as LayerReading
from kvision.training.describe import Description as Description
from kvision.training.describe import LayerCost as LayerCost
from kvision.training.describe import describe as describe
from kvision.training.replay import replay as replay
from kvision.training.transfer import TransferRecipe as TransferRecipe
from kvision.training.transfer import freeze as freeze
from kvision.training.transfer import transfer_recipe as transfer_recipe

"""Looking inside a trained model: what its units see, where its scores come from, and what fools it."""

from kvision.visualize.places import find_place as find_place
from kvision.visualize.places import places as places
from kvision.visualize.probe import Look as Look
from kvision.visualize.probe import Probe as Probe

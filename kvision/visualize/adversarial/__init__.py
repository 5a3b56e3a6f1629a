"""Adversarial images: small changes that make a classifier err, and how its accuracy falls with their size.

Every attack takes a built classifier, images and a budget in the units of these images, and gives an `Attack`.
"""

from kvision.visualize.adversarial.accuracy import AccuracyUnderAttack as AccuracyUnderAttack
from kvision.visualize.adversarial.accuracy import accuracy_under_attack as accuracy_under_attack
from kvision.visualize.adversarial.attack import Attack as Attack
from kvision.visualize.adversarial.classifier import Classifier as Classifier
from kvision.visualize.adversarial.deep_fool import deep_fool as deep_fool
from kvision.visualize.adversarial.fast_gradient import fast_gradient as fast_gradient
from kvision.visualize.adversarial.fool_from_noise import fool_from_noise as fool_from_noise
from kvision.visualize.adversarial.iterative_gradient import iterative_gradient as iterative_gradient
from kvision.visualize.adversarial.linear_classifier import fool_linear_classifier as fool_linear_classifier
from kvision.visualize.adversarial.projected_gradient import projected_gradient as projected_gradient

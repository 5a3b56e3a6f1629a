"""Models that look at several views of each image: averages of scores, merged detections."""

from kvision.test_time.average import TestTimeAverage as TestTimeAverage
from kvision.test_time.detection import TestTimeDetection as TestTimeDetection
from kvision.test_time.views import Flips as Flips
from kvision.test_time.views import GoogLeNetCrops as GoogLeNetCrops
from kvision.test_time.views import MultiScale as MultiScale
from kvision.test_time.views import TenCrops as TenCrops
from kvision.test_time.views import View as View

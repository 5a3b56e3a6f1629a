"""Reading pictures into `tf.data`, and guards against bad files and labels."""

from kvision.data.check import check_labels as check_labels
from kvision.data.folder import ImageFolder as ImageFolder
from kvision.data.folder import image_folder as image_folder

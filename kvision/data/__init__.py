"""Reading images into `tf.data`, and guards against bad files and labels."""

from kvision.data.annotations import Problem as Problem
from kvision.data.arrays import arrays as arrays
from kvision.data.check import check_labels as check_labels
from kvision.data.check import check_targets as check_targets
from kvision.data.coco import coco as coco
from kvision.data.detection import DetectionData as DetectionData
from kvision.data.folder import ImageFolder as ImageFolder
from kvision.data.folder import image_folder as image_folder
from kvision.data.letterbox import letterbox as letterbox
from kvision.data.records import records as records
from kvision.data.records import write_records as write_records
from kvision.data.scenes import scenes as scenes
from kvision.data.shapes import shape_names as shape_names
from kvision.data.shapes import shapes as shapes
from kvision.data.voc import voc as voc
from kvision.data.yolo import yolo as yolo

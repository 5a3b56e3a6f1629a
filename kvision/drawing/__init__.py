"""Charts, detections and label maps drawn on images, and what networks see and get wrong."""

from kvision.drawing.boxes import detections as detections
from kvision.drawing.canvas import DARK as DARK
from kvision.drawing.canvas import LIGHT as LIGHT
from kvision.drawing.canvas import MASK_OPACITY as MASK_OPACITY
from kvision.drawing.canvas import PALETTE as PALETTE
from kvision.drawing.canvas import font as font
from kvision.drawing.charts import TRAIN as TRAIN
from kvision.drawing.charts import VALIDATION as VALIDATION
from kvision.drawing.charts import curves as curves
from kvision.drawing.charts import lines as lines
from kvision.drawing.errors import ERROR_COLOURS as ERROR_COLOURS
from kvision.drawing.errors import detection_errors as detection_errors
from kvision.drawing.grids import grid as grid
from kvision.drawing.heatmaps import heatmap as heatmap
from kvision.drawing.label_maps import class_colour as class_colour
from kvision.drawing.label_maps import legend_strip as legend_strip
from kvision.drawing.label_maps import segmentation as segmentation
from kvision.drawing.label_maps import segmentation_errors as segmentation_errors
from kvision.drawing.quality import confusion_chart as confusion_chart
from kvision.drawing.quality import error_bars as error_bars
from kvision.drawing.quality import reliability_diagram as reliability_diagram
from kvision.drawing.scatter import image_grid as image_grid
from kvision.drawing.scatter import image_map as image_map
from kvision.drawing.scatter import scatter as scatter
from kvision.drawing.tiles import tiles as tiles
from kvision.drawing.tiles import to_pixels as to_pixels

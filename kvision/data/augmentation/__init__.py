"""Random changes of samples: images, boxes, masks, keypoints and label maps together, as pure functions of a seed."""

from kvision.data.augmentation.crops import Crop as Crop
from kvision.data.augmentation.crops import IoUCrop as IoUCrop
from kvision.data.augmentation.crops import RandomResizedCrop as RandomResizedCrop
from kvision.data.augmentation.crops import ScaleJitter as ScaleJitter
from kvision.data.augmentation.crops import ZoomOut as ZoomOut
from kvision.data.augmentation.geometric import Affine as Affine
from kvision.data.augmentation.geometric import Elastic as Elastic
from kvision.data.augmentation.geometric import HorizontalFlip as HorizontalFlip
from kvision.data.augmentation.geometric import LensDistortion as LensDistortion
from kvision.data.augmentation.geometric import Perspective as Perspective
from kvision.data.augmentation.geometric import Rotation as Rotation
from kvision.data.augmentation.geometric import Scale as Scale
from kvision.data.augmentation.geometric import Shear as Shear
from kvision.data.augmentation.geometric import Stretching as Stretching
from kvision.data.augmentation.geometric import Translation as Translation
from kvision.data.augmentation.geometric import VerticalFlip as VerticalFlip
from kvision.data.augmentation.mixing import CopyPaste as CopyPaste
from kvision.data.augmentation.mixing import CutMix as CutMix
from kvision.data.augmentation.mixing import MixUp as MixUp
from kvision.data.augmentation.mixing import Mosaic as Mosaic
from kvision.data.augmentation.photometric import ColorJitter as ColorJitter
from kvision.data.augmentation.photometric import ColorPCA as ColorPCA
from kvision.data.augmentation.photometric import PhotometricDistortion as PhotometricDistortion
from kvision.data.augmentation.pipeline import augment as augment

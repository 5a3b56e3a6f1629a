"""What is compared: one `Comparison` a row group of RESULTS.md. To add one: cases in a `steps_*.py`, an entry here.

Environments: `kvision` (TensorFlow, Keras, this package), `keras` (the same interpreter, Keras's own layers), `torch`
(stock torch, torchvision, timm), `torchopt` (the same, tuned: see `run.py`; the fair anchor), `keras_hub` (KerasHub
and kyolo). Targets name the peer they hold against.
"""

from comparison import Case, Comparison, detection, inference, training_step
from plans_fit import FIT

# What `make bench` runs: some of each kind, within 15 minutes.
SHORT = (
    "resnet50",
    "resnet50-inference",
    "vit-tiny",
    "roi-align:50x50",
    "nms",
    "retinanet",
    "faster-rcnn",
    "faster-rcnn-as-if-trained",
    "fit-jpeg",
    "input",
    "import",
)

AS_IF_TRAINED = (
    "Random weights of the statistics that trained ones have, the same file on both sides; see `detection_weights.py`."
)

COMPARISONS = [
    training_step(
        "resnet50",
        "ResNet-50 training step, batch 16, float32",
        "resnet50:float32",
        torch_case="resnet50:float32",
        keras_case="resnet50:float32",
        targets={"torchopt": 1.00, "Keras layers": 0.80},
    ),
    inference("resnet50-inference", "ResNet-50, one image of 224x224, float32", "resnet50-inference:1"),
    inference("resnet50-inference-32", "ResNet-50, 32 images of 224x224, float32", "resnet50-inference:32"),
    training_step(
        "resnet50-bfloat16",
        "ResNet-50 training step, batch 16, mixed_bfloat16",
        "resnet50:mixed_bfloat16",
        torch_case="resnet50:bfloat16",
        keras_case="resnet50:mixed_bfloat16",
        targets={"torchopt": 0.95, "Keras layers": 0.68},
    ),
    training_step(
        "resnet50-group",
        "ResNet-50 with GroupNorm(32), training step, batch 16, float32",
        "resnet50-group:float32",
        torch_case="resnet50-group:float32",
        keras_case="resnet50-group:float32",
        targets={"torchopt": 0.95, "Keras layers": 0.80},
        memory=1.05,
        note=(
            "Memory: 290 MB above batch norm at batch 2 as at batch 8, so it is XLA's compiler and what it compiled, "
            "not the maps of the step."
        ),
    ),
    training_step(
        "vgg16",
        "VGG-16 training step, batch 8, float32",
        "vgg16:float32",
        torch_case="vgg16:float32",
        keras_case="vgg16:float32",
        targets={"torchopt": 1.00, "Keras layers": 1.00},
        note="There is nothing in it but the backend's own convolutions, dense layers and the update.",
    ),
    training_step(
        "efficientnet-b0",
        "EfficientNet-B0 training step, batch 16, float32",
        "efficientnet-b0:float32",
        torch_case="efficientnet-b0:float32",
        keras_case="efficientnet-b0:float32",
        targets={"torchopt": 1.00, "Keras layers": 0.80},
        note=(
            "SiLU's gradient in one pass over memory took a step from 675 to 621 ms at 218 GFLOP/s (two processes "
            "each, in turn, 2026-11-30). Of the threads' time left, depthwise convolutions and their gradients are "
            "27 %, the other convolutions 37 %, batch norms 14 %: all the backend's own kernels."
        ),
    ),
    training_step(
        "googlenet",
        "GoogLeNet (batch norm) training step, batch 16, float32",
        "googlenet:float32",
        torch_case="googlenet:float32",
        targets={"torchopt": 1.15},
    ),
    training_step(
        "vit-tiny",
        "ViT-Ti/16 training step, batch 8, float32",
        "vit-tiny:float32",
        torch_case="vit-tiny:float32",
        hub_case="vit-tiny:float32",
        targets={"torchopt": 1.00, "KerasHub": 0.80},
        note=(
            "By its parts, timed one by one: dense products 54 %, attention 21 %, layer norms 15 %, GELU 6 %. The "
            "products are narrow, 1,576 rows by 192 columns, and the backend's own. At 218 GFLOP/s (2026-11-30) the "
            "step reaches 155. Tried there and not kept, since the step stayed within the noise: the bias added within "
            "the product, and its gradient as a product with ones; forwards of layer norm and GELU compiled into one "
            "pass, which adds half a second to the first call."
        ),
    ),
    training_step(
        "swin-tiny",
        "Swin-T training step, batch 8, float32",
        "swin-tiny:float32",
        torch_case="swin-tiny:float32",
        hub_case="swin-tiny:float32",
        targets={"torchopt": 0.95, "KerasHub": 0.85},
        memory=1.05,
        note=(
            "At 218 GFLOP/s (2026-11-30) matrix products are three quarters of the threads' time. Forwards of layer "
            "norm and GELU compiled into one pass: 2 % less, a second more in the first call; not kept."
        ),
    ),
    detection("roi-align:50x50", "RoIAlign, 512 boxes on 50x50x256, forward and backward", 0.12),
    detection("roi-align:200x200", "RoIAlign, 512 boxes on 200x200x256, forward and backward", 0.25),
    detection("deform-conv", "Deformable convolution v2, 2x50x50x256, forward and backward", 0.10),
    detection("matching", "Matching 100,000 anchors to 50 boxes", 0.15),
    detection("nms", "Non-maximum suppression of 2,000 boxes at IoU 0.7", 0.70),
    detection("retinanet", "RetinaNet R50-FPN training step, batch 2, 320x320", 0.85, hub=0.95, memory=1.1),
    detection("retinanet-inference", "RetinaNet R50-FPN, one 320x320 image, random weights", 0.90, hub=0.90),
    detection(
        "retinanet-as-if-trained",
        "RetinaNet R50-FPN, one 320x320 image, weights that find as trained ones do",
        0.90,
        agree={"detections": 0.02},
        note=AS_IF_TRAINED,
    ),
    detection("efficientdet", "EfficientDet-D0 training step, batch 2, 512x512", 0.90, memory=1.1),
    detection("efficientdet-inference", "EfficientDet-D0, one 512x512 image", 0.90),
    detection("faster-rcnn", "Faster R-CNN R50-FPN training step, batch 2, 320x320", 0.70, memory=1.2),
    detection(
        "faster-rcnn-inference",
        "Faster R-CNN R50-FPN, one 320x320 image, random weights",
        0.90,
        note=(
            "With random weights 2 of the 1,000 rows are proposals and the rest is padding, which a fixed size "
            "computes and torchvision leaves out: RoIAlign and the box head are nearly all of the difference."
        ),
    ),
    detection(
        "faster-rcnn-as-if-trained",
        "Faster R-CNN R50-FPN, one 320x320 image, weights that find as trained ones do",
        0.90,
        agree={"proposals": 0.02, "detections": 0.05},
        note=AS_IF_TRAINED,
    ),
    detection("mask-rcnn", "Mask R-CNN R50-FPN training step, batch 2, 320x320, 32 mask samples", 0.80, memory=1.2),
    detection(
        "mask-rcnn-128",
        "the same with 128 mask samples",
        0.90,
        note="On either side the mask head computes the positives there are; ours up to the most of any image.",
    ),
    detection("mask-rcnn-inference", "Mask R-CNN R50-FPN, one 320x320 image, random weights", 0.80),
    detection(
        "mask-rcnn-as-if-trained",
        "Mask R-CNN R50-FPN, one 320x320 image, weights that find as trained ones do",
        0.80,
        agree={"proposals": 0.02, "detections": 0.05},
        note=AS_IF_TRAINED,
    ),
    detection(
        "detr",
        "DETR R50 training step with auxiliary losses, batch 2, 320x320, beside transformers",
        1.00,
        memory=1.1,
    ),
    detection("detr-inference", "DETR R50, one 320x320 image, beside transformers", 0.90),
    detection("hungarian", "Assignment of 20 targets to 100 queries, 6 layers of 2 images, beside scipy; no target"),
    Comparison(
        "fcn-resnet50",
        "FCN on ResNet-50 training step with its auxiliary head, batch 2, 256x256",
        Case("kvision", "steps_segmentation.py", "fcn-resnet50"),
        {"torchopt": Case("torchopt", "steps_segmentation_torch.py", "fcn-resnet50")},
        {"torchopt": 0.95},
        memory={"torchopt": 1.1},
    ),
    Comparison(
        "fcn8s",
        "FCN-8s training step, batch 2, 256x256; reported, without a target",
        Case("kvision", "steps_segmentation.py", "fcn8s"),
        {},
        {},
        rounds=3,
    ),
    Comparison(
        "patch-dense",
        "Patch classifier of 95x95 windows on all pixels of a 96x96 image at once, beside window by window",
        Case("kvision", "steps_segmentation.py", "patch-dense"),
        {"windows": Case("kvision", "steps_segmentation.py", "patch-windows")},
        {"windows": 0.01},
        rounds=2,
    ),
    Comparison(
        "shapes",
        "RetinaNet on a narrow ResNet-18, from scratch until AP50 of generated shapes is 0.9, 128x128, batch 8",
        Case("kvision", "steps_shapes.py", "retinanet"),
        {"kyolo's YOLOv9t": Case("keras_hub", "steps_shapes.py", "yolov9t")},
        {"kyolo's YOLOv9t": 1.0},
        rounds=1,
        note="One training each, timed while it is built: a run beside other work is not told from a quiet one.",
    ),
    Comparison(
        "shapes-efficientdet",
        "EfficientDet at half the width of D0, from scratch until AP50 of generated shapes is 0.9, 128x128, batch 8",
        Case("kvision", "steps_shapes.py", "efficientdet"),
        {"kyolo's YOLOv9t": Case("keras_hub", "steps_shapes.py", "yolov9t")},
        {"kyolo's YOLOv9t": 1.0},
        rounds=1,
        note=(
            "One training each, timed while it is built: a run beside other work is not told from a quiet one. 28 s of "
            "ours are the first call; of the threads' time in a step of 176 ms depthwise convolutions are 22 %, the "
            "products of group norm 10 % (profiled 2026-11-30). With batch norm AP50 is 0.28 after 208 s."
        ),
    ),
    Comparison(
        "coco-ap",
        "COCO average precision of 5,000 images with 100 detections each",
        Case("kvision", "steps_coco.py", "kvision:5000"),
        {"pycocotools": Case("torch", "steps_coco.py", "pycocotools:5000")},
        {"pycocotools": 0.15},
        rounds=3,
    ),
    Comparison(
        "mean-iou",
        "mean IoU of 500 label maps of 512x512 pixels, 21 classes, in batches of 20",
        Case("kvision", "steps_metrics.py", "kvision"),
        {
            "torchmetrics": Case("torch", "steps_metrics.py", "torchmetrics"),
            "torchmetrics, labels unchecked": Case("torch", "steps_metrics.py", "torchmetrics-unchecked"),
            "Keras": Case("keras", "steps_metrics.py", "keras"),
        },
        {"torchmetrics": 0.5},
        rounds=3,
    ),
    *FIT,
    Comparison(
        "look-occlusion",
        "Occlusion of one 128x128 image, 841 windows, MobileNetV2",
        Case("kvision", "steps_visualize.py", "occlusion"),
        {"predict": Case("kvision", "steps_visualize.py", "predict-windows")},
        {"predict": 1.11},
        rounds=3,
    ),
    Comparison(
        "look-patches",
        "Maximally activating patches of 32 units in 384 images, MobileNetV2 at 128 px",
        Case("kvision", "steps_visualize.py", "patches"),
        {"predict": Case("kvision", "steps_visualize.py", "predict")},
        {"predict": 1.11},
        rounds=3,
    ),
    Comparison(
        "look-codes",
        "Codes for t-SNE of 384 images, MobileNetV2 at 128 px",
        Case("kvision", "steps_visualize.py", "codes"),
        {"predict": Case("kvision", "steps_visualize.py", "predict")},
        {"predict": 1.11},
        rounds=3,
    ),
    Comparison(
        "style-step",
        "A step of style transfer, VGG-16, 256x256, beside a forward pass and a gradient",
        Case("kvision", "steps_visualize.py", "style"),
        {"plain gradient": Case("kvision", "steps_visualize.py", "plain-gradient")},
        {"plain gradient": 1.3},
        rounds=3,
    ),
    Comparison(
        "import",
        "`import kvision` after `import keras`, in a fresh interpreter",
        Case("kvision", "steps_import.py", "kvision"),
        {},
        {},
        most_ms=200,
    ),
]

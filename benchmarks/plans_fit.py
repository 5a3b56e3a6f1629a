"""What is compared of whole runs: `fit` with callbacks, input, small networks on files, and time to a result."""

from comparison import Case, Comparison

FIT = [
    Comparison(
        "vitals",
        "`fit` of ResNet-18, batch 32, 64x64, with `Vitals` at its defaults, 100 steps",
        Case("kvision", "steps_kvision.py", "resnet18-fit:vitals"),
        {"plain fit": Case("kvision", "steps_kvision.py", "resnet18-fit:plain")},
        {"plain fit": 1.03},
    ),
    Comparison(
        "vitals-every-step",
        "the same, measured at every step (`every=1`); reported, without a target",
        Case("kvision", "steps_kvision.py", "resnet18-fit:vitals-every-step"),
        {"plain fit": Case("kvision", "steps_kvision.py", "resnet18-fit:plain")},
        {},
    ),
    Comparison(
        "all-vitals",
        "the same with `Vitals`, `GradientToWeight`, `PrecisionHealth` and `Throughput` at their defaults",
        Case("kvision", "steps_kvision.py", "resnet18-fit:all-vitals"),
        {"plain fit": Case("kvision", "steps_kvision.py", "resnet18-fit:plain")},
        {"plain fit": 1.05},
    ),
    Comparison(
        "rollback",
        "the same with `Rollback` at its defaults: a guard in every step, a copy of the state every 100",
        Case("kvision", "steps_kvision.py", "resnet18-fit:rollback"),
        {"plain fit": Case("kvision", "steps_kvision.py", "resnet18-fit:plain")},
        {"plain fit": 1.02},
    ),
    Comparison(
        "resume",
        "the same with `Resume(every=100)`",
        Case("kvision", "steps_kvision.py", "resnet18-fit:resume"),
        {"plain fit": Case("kvision", "steps_kvision.py", "resnet18-fit:plain")},
        {"plain fit": 1.02},
    ),
    Comparison(
        "resume-restore",
        "restoring a checkpoint of ResNet-50 with momentum, beside Keras's `load_weights`",
        Case("kvision", "steps_resume.py", "restore"),
        {"load_weights": Case("kvision", "steps_resume.py", "load_weights")},
        {"load_weights": 1.5},
    ),
    Comparison(
        "resume-stall",
        "what a step waits for a checkpoint of ResNet-50 with momentum",
        Case("kvision", "steps_resume.py", "stall"),
        {},
        {},
        most_ms=300,
    ),
    Comparison(
        "input",
        "3 x 256 JPEGs of 500x400: decode, random resized crop 224, flip, colour jitter, batches of 32 in float32",
        Case("kvision", "steps_data.py", "classification"),
        {
            "torchvision": Case("torch", "steps_data_torch.py", "classification"),
            "torchvision, not antialiased": Case("torch", "steps_data_torch.py", "classification-not-antialiased"),
            "Keras layers": Case("keras", "steps_data.py", "keras-layers"),
            "without the guard": Case("kvision", "steps_data.py", "classification-unguarded"),
        },
        {"torchvision": 0.67, "torchvision, not antialiased": 0.50, "Keras layers": 0.40, "without the guard": 1.02},
    ),
    Comparison(
        "input-detection",
        "3 x 64 JPEGs of 500x400, six polygons each: decode, scale jitter 320, flip, mosaic, masks, batches of 8",
        Case("kvision", "steps_data.py", "detection"),
        {"torchvision": Case("torch", "steps_data_torch.py", "detection")},
        {"torchvision": 0.67},
        rounds=3,
        note=(
            "Of the processor time of a sample resampling is 33 %, the transpositions that make it quick 22 %, JPEG "
            "17 %, masks 11 %, and the small operations, about 900, 17 % (TensorFlow's profiler, on a busy machine)."
        ),
    ),
    Comparison(
        "records",
        "3 x 256 images of 224x224 out of records, beside the folder of JPEGs, without augmentation",
        Case("kvision", "steps_data.py", "records"),
        {"folder": Case("kvision", "steps_data.py", "folder")},
        {"folder": 0.33},
    ),
    Comparison(
        "input-share",
        "`fit` of ResNet-18, batch 32, 224x224, on the pipeline of the row `input`, 4 steps, beside a batch in memory",
        Case("kvision", "steps_data.py", "fit"),
        {"from memory": Case("kvision", "steps_data.py", "fit-from-memory")},
        {"from memory": 1.05},
        rounds=3,
    ),
    Comparison(
        "fit-jpeg",
        "`fit` of ResNet-20, batch 32, 32x32, on 256 JPEGs of 256x256: resized, cropped at random, mirrored; 2 epochs",
        Case("kvision", "steps_fit.py", "kvision:jpeg"),
        {
            "torchopt": Case("torchopt", "steps_fit_torch.py", "jpeg"),
            "plain Keras": Case("keras", "steps_fit.py", "keras:jpeg"),
        },
        {"torchopt": 1.0, "plain Keras": 1.0},
        rounds=3,
        agree={"parameters": 0, "loss": 0.3},
        throughput=True,
        note=(
            "From a batch in memory the steps take 0.90 s on both sides (218 GFLOP/s, 2026-11-30). Our input takes "
            "0.67 s of processor time, of which 0.50 s decode and resize; alone it is done after 0.43 s, torch's two "
            "workers after 0.24 s. An epoch begins after 0.09 s, in which TensorFlow optimises the pipeline's graphs."
        ),
    ),
    Comparison(
        "fit-records",
        "the same out of records, beside torch on a NumPy file of the resized images and `Dataset.cache`",
        Case("kvision", "steps_fit.py", "kvision:records"),
        {
            "torchopt": Case("torchopt", "steps_fit_torch.py", "numpy"),
            "plain Keras, cached": Case("keras", "steps_fit.py", "keras:cached"),
        },
        {"torchopt": 1.0, "plain Keras, cached": 1.0},
        rounds=3,
        agree={"parameters": 0, "loss": 0.3},
        throughput=True,
        note=(
            "From a batch in memory the steps take 0.90 s on both sides (218 GFLOP/s, 2026-11-30). Our input takes "
            "0.13 s of processor time; alone it is done after 0.11 s, torch's two workers after 0.06 s. An epoch "
            "begins after 0.03 s, in which TensorFlow optimises the pipeline's graphs."
        ),
    ),
    Comparison(
        "digits",
        "From the start of the process until a network has 98 % of the held-out digits right: the main job as it is",
        Case("kvision", "steps_digits.py", "kvision"),
        {
            "torchopt": Case("torchopt", "steps_digits.py", "torch"),
            "plain Keras": Case("keras", "steps_digits.py", "keras"),
        },
        {"torchopt": 0.8, "plain Keras": 0.8},
        rounds=3,
        note=(
            "Three seeds, imports and reading the digits included; network, initializers, augmentation, optimizer and "
            "schedule are the same, in `digits_keras.py` and `digits_torch.py`. Ours writes its report, its vitals and "
            "its W&B run meanwhile; memory is that of the process that waits. At 218 GFLOP/s importing Keras with "
            "TensorFlow takes 4 s (12 where Python may not keep what it compiled), the first epoch 3 and another 1.1 "
            "(2026-11-30)."
        ),
    ),
]

"""Torchvision's detectors as if trained: with random weights as they come, nothing would be found."""


def randomise(model, answers):
    """Frozen statistics, and answers that tell regions and classes apart.

    Args:
        model: A torch module; changed in place and returned.
        answers: `{part of a weight's name: deviation}` for its last layers; the first that fits counts.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        deviations = [deviation for part, deviation in answers.items() if part in name]
        if name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
            tensor.uniform_(0.5, 1.0, generator=generator)
        elif tensor.ndim == 1:
            tensor.normal_(0.0, 0.1, generator=generator)
        elif deviations:
            tensor.normal_(0.0, deviations[0], generator=generator)
    return model

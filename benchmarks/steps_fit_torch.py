"""The training of `steps_fit.py` in torch: the JPEG files, or a NumPy file of the resized images.

The quickest of three forms is taken: as many workers as threads or one, and with the former the network compiled.
"""

import pathlib
import tempfile

import harness

torch = harness.torch()

import fit_images
import numpy as np
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.io import decode_jpeg, read_file
from torchvision.transforms import v2

SCALE = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
AUGMENT = [v2.RandomCrop(fit_images.CROP), v2.RandomHorizontalFlip(), *SCALE]
RESIZE = v2.Resize((fit_images.RESIZED, fit_images.RESIZED), antialias=True)


class Block(nn.Module):
    def __init__(self, channels, width, stride):
        super().__init__()
        self.body = nn.Sequential(*unit(channels, width, 3, stride), nn.ReLU(inplace=True), *unit(width, width, 3))
        self.shortcut = nn.Sequential(*unit(channels, width, 1, stride)) if stride > 1 else nn.Identity()

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


def unit(channels, width, window, stride=1):
    return nn.Conv2d(channels, width, window, stride, window // 2, bias=False), nn.BatchNorm2d(width)


def network():
    """ResNet-20 with projections."""
    layers, channels = [*unit(3, 16, 3), nn.ReLU(inplace=True)], 16
    for width in (16, 32, 64):
        for block in range(3):
            layers.append(Block(channels, width, 2 if block == 0 and width > 16 else 1))
            channels = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, fit_images.CLASSES))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model.train().to(memory_format=torch.channels_last)


def jpegs():
    transform = v2.Compose([RESIZE, *AUGMENT])
    return ImageFolder(fit_images.folder(), transform, loader=lambda path: decode_jpeg(read_file(path)))


class Prepared(torch.utils.data.Dataset):
    """The resized images of a NumPy file, mapped into memory."""

    def __init__(self):
        found = ImageFolder(fit_images.folder(), RESIZE, loader=lambda path: decode_jpeg(read_file(path)))
        path = pathlib.Path(tempfile.mkdtemp(), "images.npy")
        np.save(path, np.stack([image.numpy() for image, _ in found]))
        self.images, self.labels = np.load(path, mmap_mode="r"), found.targets
        self.change = v2.Compose(AUGMENT)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.change(torch.from_numpy(self.images[index].copy())), self.labels[index]


def training(images_of):
    def factory():
        torch.manual_seed(0)
        images = images_of()

        def form(compiled, workers):
            def build():
                model = network()
                return loop(torch.compile(model) if compiled else model, model, loader_of(images, workers))

            return build

        most = harness.THREADS
        forms = {f"as it is, {number} workers": form(False, number) for number in {1, most}}
        forms[f"compiled, {most} workers"] = form(True, most)
        name, step = harness.fastest(forms)

        def told():
            fresh = network()
            loss = loop(fresh, fresh, loader_of(images, most))(fit_images.TAUGHT)
            return {
                "parameters": sum(p.numel() for p in fresh.parameters()) + statistics_of(fresh),
                "loss": loss,
                "form": name,
            }

        return step, {"images": fit_images.EPOCHS * len(images), "told": told}

    return factory


def statistics_of(model):
    """Number of moving means and variances, which Keras counts as parameters."""
    return sum(buffer.numel() for name, buffer in model.named_buffers() if "running" in name)


def loader_of(images, workers):
    return torch.utils.data.DataLoader(
        images, fit_images.BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True
    )


def loop(forward, model, loader):
    """Some epochs; returns the mean loss of the last."""
    optimizer = torch.optim.SGD(model.parameters(), fit_images.RATE, momentum=0.9)
    loss_of = nn.CrossEntropyLoss()

    def step(epochs=fit_images.EPOCHS):
        for _ in range(epochs):
            total = 0.0
            for images, labels in loader:
                optimizer.zero_grad(set_to_none=True)
                loss = loss_of(forward(images.contiguous(memory_format=torch.channels_last)), labels)
                loss.backward()
                optimizer.step()
                total += float(loss.detach())
        return total / len(loader)

    return step


CASES = {"jpeg": training(jpegs), "numpy": training(Prepared)}

if __name__ == "__main__":
    harness.serve(CASES)

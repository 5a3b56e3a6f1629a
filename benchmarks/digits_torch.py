"""The main job, `examples/train_digits.py`, in torch: the same network, augmentation, optimizer and schedule.

Whole batches are rotated, moved and zoomed at once, in one resampling; the images lie in memory: no workers.
"""

import math

import digits_data
import torch
from torch import nn
from torch.nn import functional


def lenet5():
    def stage(channels, filters):
        convolution = nn.Conv2d(channels, filters, 5, bias=False)
        return convolution, nn.BatchNorm2d(filters), nn.ReLU(inplace=True), nn.MaxPool2d(2)

    top = nn.Conv2d(16, 120, 5), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(120, 84), nn.ReLU(inplace=True)
    model = nn.Sequential(*stage(1, 6), *stage(6, 16), *top, nn.Linear(84, 10))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def augmented(images):
    """Rotated by up to 3 % of a turn, moved by up to 7 % of the side, zoomed by up to 10 %; −1 beyond the image."""
    angle, across, down, zoom = (2 * torch.rand(4, len(images)) - 1) * torch.tensor(
        [[0.03 * 2 * math.pi], [0.14], [0.14], [0.1]]  # a side is 2 long
    )
    cosine, sine = (1 + zoom) * angle.cos(), (1 + zoom) * angle.sin()
    rows = torch.stack([cosine, -sine, across, sine, cosine, down], dim=1).reshape(-1, 2, 3)
    grid = functional.affine_grid(rows, images.shape, align_corners=False)
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1


def main():
    options = digits_data.arguments()
    torch.manual_seed(options.seed)
    (images, labels), (test_images, test_labels) = (
        (torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(classes))
        for pixels, classes in digits_data.digits(options.quick)
    )
    model, loss_of = lenet5(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-7)
    steps = math.ceil(len(images) / digits_data.BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, digits_data.RATE, total_steps=steps * digits_data.EPOCHS, cycle_momentum=False
    )
    for epoch in range(2 if options.quick else digits_data.EPOCHS):
        model.train()
        for rows in torch.randperm(len(images)).split(digits_data.BATCH):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(model(augmented(images[rows])), labels[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            right = (model(test_images).argmax(1) == test_labels).float().mean()
        print(f"Epoch {epoch + 1} - loss: {float(loss.detach()):.4f} - val_accuracy: {float(right):.4f}", flush=True)


if __name__ == "__main__":
    main()

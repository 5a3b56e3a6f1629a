"""Input pipelines of torchvision v2 in a DataLoader with a worker a core: a step is a few epochs."""

import collections
import json
import os

import harness

torch = harness.torch()

import photos
import PIL.Image
import PIL.ImageDraw
from torchvision import tv_tensors
from torchvision.io import decode_jpeg, read_file
from torchvision.transforms import v2

BATCH, SIZE, BOXES, ROWS = 32, 224, 320, 40
WHOLE = v2.ToDtype(torch.float32)


class Classification(torch.utils.data.Dataset):
    def __init__(self, antialias):
        self.files = photos.files()
        crop = v2.RandomResizedCrop(SIZE, antialias=antialias)
        self.change = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4), WHOLE])

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return self.change(decode_jpeg(read_file(self.files[index])))


class Detection(torch.utils.data.Dataset):
    """Scaled and cropped at random, mirrored, four images as one, as kvision's; boxes and masks."""

    def __init__(self):
        home = photos.folder()
        content = json.loads((home / "annotations.json").read_text())
        self.images = [(os.path.join(home, image["file_name"]), image["id"]) for image in content["images"]]
        self.objects = collections.defaultdict(list)
        for each in content["annotations"]:
            self.objects[each["image_id"]].append(each)
        self.change = v2.Compose(
            [
                v2.ScaleJitter((BOXES, BOXES), (0.5, 1.5), antialias=True),
                v2.RandomCrop((BOXES, BOXES), pad_if_needed=True),
                v2.RandomHorizontalFlip(),
                v2.SanitizeBoundingBoxes(),
            ]
        )

    def __len__(self):
        return len(self.images)

    def one(self, index):
        path, key = self.images[index]
        image = tv_tensors.Image(decode_jpeg(read_file(path)))
        size = tuple(image.shape[-2:])
        boxes, masks, labels = [], [], []
        for each in self.objects[key]:
            left, top, width, height = each["bbox"]
            boxes.append([left, top, left + width, top + height])
            drawn = PIL.Image.new("L", size[::-1])
            PIL.ImageDraw.Draw(drawn).polygon(each["segmentation"][0], fill=1)
            masks.append(v2.functional.pil_to_tensor(drawn)[0])
            labels.append(each["category_id"])
        targets = {
            "boxes": tv_tensors.BoundingBoxes(torch.tensor(boxes), format="XYXY", canvas_size=size),
            "masks": tv_tensors.Mask(torch.stack(masks)),
            "labels": torch.tensor(labels),
        }
        return self.change(image, targets)

    def __getitem__(self, index):
        others = torch.randint(len(self), (3,)).tolist()
        row, column = (int(BOXES * (0.25 + 0.5 * torch.rand(()))) for _ in range(2))
        image = torch.zeros(3, BOXES, BOXES)
        made = {"boxes": torch.zeros(ROWS, 4), "labels": torch.full((ROWS,), -1)}
        made["masks"] = torch.zeros(ROWS, BOXES, BOXES, dtype=torch.uint8)
        used = 0
        for place, (part, targets) in enumerate(map(self.one, [index, *others])):
            top, left = row * (place // 2), column * (place % 2)
            height, width = (BOXES - row if place // 2 else row), (BOXES - column if place % 2 else column)
            window = [int(torch.randint(BOXES - side + 1, ())) for side in (height, width)] + [height, width]
            cut = v2.functional.crop(targets["boxes"], *window)
            kept = ((cut[:, 2:] - cut[:, :2]) >= 1).all(1).nonzero()[: ROWS - used, 0]
            rows = slice(used, used + len(kept))
            image[:, top : top + height, left : left + width] = v2.functional.crop(part, *window)
            made["boxes"][rows] = cut[kept] + torch.tensor([left, top, left, top])
            made["labels"][rows] = targets["labels"][kept]
            moved = v2.functional.crop(targets["masks"][kept], *window)
            made["masks"][rows, top : top + height, left : left + width] = moved
            used += len(kept)
        return image, made


def passes(build, batch=BATCH):
    def factory():
        loader = torch.utils.data.DataLoader(
            build(), batch, num_workers=harness.THREADS, drop_last=True, persistent_workers=True
        )

        def step():
            for _ in range(photos.EPOCHS):
                for _ in loader:
                    pass

        return step, {"images": len(loader.dataset) * photos.EPOCHS}

    return factory


CASES = {
    "classification": passes(lambda: Classification(True)),
    "classification-not-antialiased": passes(lambda: Classification(False)),
    "detection": passes(Detection, batch=8),
}

if __name__ == "__main__":
    harness.serve(CASES)

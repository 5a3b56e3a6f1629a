"""Images inside the local report: small, few, and the newest."""

from kvision.page import address, encoded

ALL = 450_000  # bytes of all


class Gallery:
    """The newest image of each name, the oldest dropped where they are too many."""

    def __init__(self):
        self._images = {}

    def add(self, event):
        """Take in the images of an `Images` event."""
        for name, image in event.images.items():
            kind, content, size = encoded(image)
            self._images.pop(name, None)
            self._images[name] = (event.step, kind, content, size)
        while sum(len(content) for _, _, content, _ in self._images.values()) > ALL:
            del self._images[next(iter(self._images))]

    def page(self):
        """As JSON can hold it, images as data addresses; the newest step first, its images as they came."""
        newest_first = sorted(self._images.items(), key=lambda item: -item[1][0])
        return [
            {
                "name": str(name),
                "step": int(step),
                "width": width,
                "height": height,
                "source": address(kind, content),
            }
            for name, (step, kind, content, (width, height)) in newest_first
        ]

"""Which images are the same, exactly or nearly: a hash of the pixels, and one of what the eye sees."""

import hashlib

import numpy as np

ROWS, COLUMNS = 8, 9
BITS = ROWS * (COLUMNS - 1)
BANDS = 4  # pieces of a hash; two hashes that differ in fewer bits than there are pieces agree in one


def pixel_hash(image):
    """Equal for images of equal pixels and size alone."""
    pixels = np.ascontiguousarray(np.clip(np.round(np.nan_to_num(image)), 0, 255).astype("uint8"))
    return hashlib.blake2b(pixels.tobytes() + str(pixels.shape).encode(), digest_size=8).digest()


def difference_hash(image):
    """A perceptual hash of 64 bits: whether each of 8 x 8 cells is brighter than its neighbour at the right.

    It survives another size, another compression, and a little more or less light or contrast. Krawetz 2013, "Kind of
    like that" (https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html).

    Args:
        image: [h, w, c] of any range.

    Returns:
        64 bits as a uint64, or None for an image of one colour, which has no differences.
    """
    grey = np.nan_to_num(np.asarray(image, "float64"), posinf=0, neginf=0).mean(axis=-1)
    for axis, cells in enumerate((ROWS, COLUMNS)):
        repeats = -(-cells // grey.shape[axis])
        grey = np.repeat(grey, repeats, axis) if repeats > 1 else grey
        edges = np.linspace(0, grey.shape[axis], cells + 1).astype(int)[:-1]
        sizes = np.diff([*edges, grey.shape[axis]])
        grey = np.add.reduceat(grey, edges, axis) / np.expand_dims(sizes, 1 - axis)
    if np.ptp(grey) < 1e-6:
        return None
    bits = (grey[:, 1:] > grey[:, :-1]).ravel()
    return np.packbits(bits).view("uint64")[0]


def near_pairs(hashes, distance=BANDS - 1):
    """Pairs of indices, the smaller first, whose hashes differ in at most `distance` bits.

    Hashes are compared only where they agree in one of four pieces, which all pairs within three bits do.

    Args:
        hashes: uint64 [n].
        distance: In bits, from 0 to 3.

    Returns:
        [(first, second), …], sorted.

    >>> near_pairs(np.array([0b1111, 0b1110, 2**63], "uint64"))
    [(0, 1)]
    """
    if not 0 <= distance < BANDS:
        raise ValueError(f"near_pairs: distance lies in 0 to {BANDS - 1} bits, got {distance!r}.")
    hashes = np.asarray(hashes, "uint64")
    found = set()
    for band in hashes.view("uint16").reshape(-1, BANDS).T:
        order = np.argsort(band, kind="stable")
        begins = np.flatnonzero(np.diff(band[order], prepend=-1))
        for members in np.split(order, begins[1:]):
            for position, first in enumerate(members[:-1]):
                others = members[position + 1 :]
                near = others[np.bitwise_count(hashes[first] ^ hashes[others]) <= distance]
                found.update((min(first, other), max(first, other)) for other in near.tolist())
    return sorted((int(first), int(second)) for first, second in found)

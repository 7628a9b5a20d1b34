"""The image preparation that OpenVLA-OFT's checkpoints were trained and evaluated with, without TensorFlow.

JPEG round trip -> Lanczos resize -> centre crop of 0.9 of the area -> resize back: what the pixels of a LIBERO camera
(already turned by 180 degrees) go through before the policy sees them. RoboTwin images take the last two steps only.
Resize and crop reproduce TensorFlow's to one grey level in a few pixels of 10,000. The JPEG decoder does not: Pillow's
transform is the accurate one, TensorFlow's default the fast one, which differ by 1.1 to 1.4 grey levels on average.
"""

import io

import numpy as np
from PIL import Image

CROP_AREA = 0.9


def libero_image(image_HWC: np.ndarray, *, size_px: int = 224) -> np.ndarray:
    """uint8 (size, size, 3) as the policy reads it, from a uint8 camera image."""
    return centre_crop(lanczos_resize(jpeg_round_trip(image_HWC), size_px=size_px), size_px=size_px)


def jpeg_round_trip(image_HWC: np.ndarray) -> np.ndarray:
    """Encode with quality 95 and 4:2:0 chroma (the training data were stored so) and decode again."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, format="JPEG", quality=95, subsampling="4:2:0")
    decoded: np.ndarray = np.asarray(Image.open(buffer))
    return decoded


def lanczos_resize(image_HWC: np.ndarray, *, size_px: int) -> np.ndarray:
    """Lanczos-3 with antialiasing, both axes in float, rounded once at the end."""
    rows, columns = (_lanczos_weights(length, size_px) for length in image_HWC.shape[:2])
    resized = np.einsum("ih,hwc,jw->ijc", rows, image_HWC.astype(np.float64), columns, optimize=True)
    rounded: np.ndarray = np.clip(np.rint(resized), 0, 255).astype(np.uint8)
    return rounded


def centre_crop(image_HWC: np.ndarray, *, size_px: int, area: float = CROP_AREA) -> np.ndarray:
    """The central part with `area` of the surface, bilinearly resized to a square; the box's corners are sampled."""
    rows, columns = (_crop_weights(length, size_px, area**0.5) for length in image_HWC.shape[:2])
    unit_HWC = image_HWC.astype(np.float32) / np.float32(255)
    cropped = np.einsum("ih,hwc,jw->ijc", rows, unit_HWC, columns, optimize=True)
    # Multiply by 255.5 and cut: how TensorFlow turns 0…1 into bytes.
    bytes_HWC: np.ndarray = (np.clip(cropped, 0, 1) * 255.5).astype(np.uint8)
    return bytes_HWC


def _lanczos_weights(in_length: int, out_length: int) -> np.ndarray:
    """(out, in): each row sums to 1."""
    scale = in_length / out_length
    stretch = max(scale, 1.0)
    centre = (np.arange(out_length) + 0.5) * scale - 0.5
    distance = (np.arange(in_length)[None, :] - centre[:, None]) / stretch
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0.0)
    normalised: np.ndarray = weights / weights.sum(1, keepdims=True)
    return normalised


def _crop_weights(in_length: int, out_length: int, side: float) -> np.ndarray:
    """(out, in): bilinear samples evenly from one edge of the central box to the other, edges included."""
    low, high = (1 - side) / 2 * (in_length - 1), (1 + side) / 2 * (in_length - 1)
    position = np.linspace(low, high, out_length)
    weights: np.ndarray = np.maximum(0.0, 1.0 - np.abs(np.arange(in_length)[None, :] - position[:, None]))
    return weights

"""Restore a photograph with a shipped model: the picture, its blur kernel, and how far both can be trusted.

python examples/restore_a_photograph.py
"""

from pathlib import Path

import cv2
from skimage import data

from pipeline.inference import Restorer

OUT = Path("examples-output")

photograph = data.chelsea()[80:176, 100:220]  # (96, 120, 3) uint8 RGB; any such array works
restored = Restorer.load("shipped:blind-sr-x2").restore(photograph, scale=2)

OUT.mkdir(exist_ok=True)
cv2.imwrite(str(OUT / "restored.png"), restored.image[..., ::-1])  # OpenCV writes BGR
kernel = (255 * restored.kernel.clip(0) / restored.kernel.max()).astype("uint8")
cv2.imwrite(str(OUT / "kernel.png"), cv2.resize(kernel, None, fx=8, fy=8, interpolation=cv2.INTER_NEAREST))
print(f"{photograph.shape} -> {restored.image.shape}, noise level {255 * restored.sigma:.2f}/255")
print(
    f"kernel {restored.kernel.shape} of sum {restored.kernel.sum():.3f}, unexplained {255 * restored.residual:.2f}/255"
)

"""Restore pictures from your own camera with any known kernel, here a box pixel after a slanted shake.

python examples/custom_degradation.py
"""

import numpy as np
import torch
from scipy.ndimage import convolve
from skimage import data

from pipeline.degrade import degrade, quantize
from pipeline.evaluation import psnr
from pipeline.inference import Restorer
from pipeline.model import upsample

SCALE = 2
shake = np.eye(7, dtype=np.float32)
pixel = np.ones((SCALE, SCALE), np.float32)  # a sensor's pixel averages the light on its area
kernel = np.zeros((13, 13), np.float32)
kernel[3:10, 3:10] = convolve(shake, pixel, mode="constant")
kernel /= kernel.sum()

sharp = data.astronaut()[:256, 100:356]
hr = torch.from_numpy(sharp.copy()).permute(2, 0, 1)[None].float() / 255
lr = quantize(degrade(hr, torch.from_numpy(kernel)[None], SCALE), "round")
seen = (255 * lr[0].permute(1, 2, 0)).round().byte().numpy()

# `degrade` keeps the upper-left pixel of each block, so the sharp picture is on the grid "corner".
restorer = Restorer.load("shipped:blind-sr-x2")
restored = restorer.restore(seen, SCALE, sigma=0.0, kernel=kernel, grid="corner").image
bicubic = (255 * upsample(lr, SCALE, "bicubic")[0].permute(1, 2, 0)).clamp(0, 255).round().byte().numpy()
inside = np.s_[16:-16, 16:-16]  # a photograph's edges were blurred with light from outside of it
for name, image in (("bicubic", bicubic), ("restored", restored)):
    print(f"{name:9}{psnr(image[inside], sharp[inside]):.2f} dB")

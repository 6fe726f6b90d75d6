"""A device whose memory runs out below the limit is asked for less at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kernels_bank.runtime.errors import BadRequestError
from pipeline.inference.network import LoadedNetwork
from pipeline.inference.windows import Settings, restore_planes
from pipeline.model.weights import load_model
from pipeline.shipped import shipped_folder

KERNEL = np.zeros((5, 5), np.float32)
KERNEL[2, 2] = 1
SETTINGS = Settings(2, 0.05, KERNEL, False, 64 << 30, None, None)
IMAGE = np.random.default_rng(0).random((300, 40, 3), np.float32)


class Short(LoadedNetwork):
    """Enlarges instead of restoring, and has no memory for more than `room` LR pixels at once."""

    room = 0

    def nonblind(self, lr, kernel, scale, sigma, x0=None, tick=None):
        self.tried.append(lr.shape[-2] * lr.shape[-1])
        if self.tried[-1] > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 EiB. GPU 0 has ...")
        return F.interpolate(lr, scale_factor=scale)


@pytest.fixture
def short() -> Short:
    network = load_model(shipped_folder("shipped:blind-sr-x2"))
    made = Short(network, uri="short", digest="", device=torch.device("cpu"))
    made.tried = []
    return made


def test_windows_become_smaller_until_they_fit_and_give_the_same(short: Short):
    short.room = 1 << 30
    whole = restore_planes(short, IMAGE, SETTINGS, item=1, channels=3)
    short.room = short.tried[-1] // 2
    cut = restore_planes(short, IMAGE, SETTINGS, item=1, channels=3)
    assert whole.windows == 1 < cut.windows
    assert max(short.tried[-cut.windows :]) <= short.room
    np.testing.assert_allclose(cut.image, whole.image, atol=1e-6)


def test_no_room_at_all_is_said_in_a_line(short: Short):
    with pytest.raises(
        BadRequestError, match=r"^cpu: too little memory is left for a 40 x 300 image, also in windows "
    ):
        restore_planes(short, IMAGE, SETTINGS, item=1, channels=3)
    assert len(short.tried) < 20
    assert short.tried == sorted(short.tried, reverse=True)

"""Fit the net that estimates the trust in a blind restoration, and put it into a model folder.

Photographs and drawn pictures are degraded as by cameras and web sites, and restored blind. The features of each case
and how right it was are stored in parts in a folder, which a second call reuses.

python -m tools.fit_trust --photographs BSDS400 --model shipped:blind-sr-camera --cases DIR --output MODEL
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kernels_bank import sample_disk, sample_gaussian, sample_motion
from kernels_bank.runtime import storage
from kernels_bank.runtime.progress import Progress
from pipeline.catalogue import locate
from pipeline.evaluation.metrics import psnr, psnr_shifted
from pipeline.images.decode import decode_photograph
from pipeline.inference import Restorer
from pipeline.inference.trust import FEATURES, TRUST, mix
from pipeline.seeds import rng
from tools.drawn_pictures import SHARES, Random
from tools.model_copy import write_copy

PART = 100  # cases
_SIDES, _SCALES = (64, 96, 128, 160, 192, 240, 320), (2, 2, 3, 4)  # HR pixels
_BLURRED, _MOTION, _DISK = 0.75, 0.4, 0.1  # shares of the pictures; all other blurs are Gaussian
_BORDER = 8  # HR pixels left out in the search for a shift
_SOFT = 0.15  # share of photographs that were never sharp
_NETS, _HIDDEN, _EPOCHS = 8, 24, 300
_BOUNDS = (-6.0, 4.0)  # dB; cases beyond these bounds count as equal
_SOFT_WEIGHT = 0.1  # low, since blurred and never-sharp pictures look the same, and users want both sharp


class Cases(NamedTuple):
    """Hold the features of n restorations, and how right each was."""

    features: np.ndarray  # (n, f)
    plain: np.ndarray  # (n,) mean squared error of the enlargement
    right: np.ndarray  # (n,) the best w
    apart: np.ndarray  # (n,) mean square of restored - enlarged
    weight: np.ndarray  # (n,)


def main() -> None:
    """Draw missing parts, fit, and write the model folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of sharp pictures")
    parser.add_argument("--model", required=True, help="that tells blur and reduction apart")
    parser.add_argument("--cases", type=Path, required=True, help="folder of what was seen")
    parser.add_argument("--parts", type=int, default=20, help=f"of {PART} cases")
    parser.add_argument("--output", type=Path, required=True, help="model folder: a copy of the model with its trust")
    parser.add_argument("--refined-alone", action="store_true", help="keep the model's nets for all other kernels")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    restorer = Restorer.load(arguments.model, torch.device("cpu"), "auto")
    photographs = sorted(path for path in arguments.photographs.iterdir() if path.suffix in {".jpg", ".png"})
    arguments.cases.mkdir(parents=True, exist_ok=True)
    files = [arguments.cases / f"part-{number:03d}.npz" for number in range(arguments.parts)]
    missing = [(number, file) for number, file in enumerate(files) if not file.exists()]
    with Progress("cases", total=len(missing) * PART, unit="restoration") as bar:
        for number, file in missing:
            random = rng(0, epoch=number, key="cases", purpose="trust")
            rows = []
            while len(rows) < PART:
                if (row := _case(random, photographs, restorer)) is not None:
                    rows.append(row)
                    bar.advance()
            columns = [np.array(column) for column in zip(*rows, strict=True)]
            packed = io.BytesIO()
            np.savez(packed, **dict(zip(Cases._fields, columns, strict=True)))
            storage.write_bytes(str(file), packed.getvalue())
    parts = [np.load(file) for file in files]
    seen = Cases(*(np.concatenate([part[name] for part in parts]) for name in Cases._fields))
    folder = Path(locate(arguments.model).folder)
    if arguments.refined_alone:
        others = {name: value[0] for name, value in load_file(folder / TRUST).items()}
    else:
        others = fit(Cases(*(column[seen.features[:, FEATURES.index("refined")] == 0] for column in seen)), 2.0)
    # The refined cases alone are too few for training.
    sets = [others, fit(seen, 3.0)]
    both = {name: torch.stack([tensors[name] for tensors in sets]) for name in sets[0]}
    net = save(both, metadata={"features": ",".join(FEATURES)})
    made_by = {"trust": "tools/fit_trust.py"}
    write_copy(folder, arguments.output, TRUST, net, made_by)


class Recorder:
    """Record the features for a trust net, and answer with full trust."""

    def __init__(self) -> None:
        self.asked = np.zeros(len(FEATURES))

    def __call__(self, features: np.ndarray) -> float:
        """Return 1."""
        self.asked = features
        return 1.0


def _case(
    random: Random, photographs: list[Path], restorer: Restorer
) -> tuple[np.ndarray, float, float, float, float] | None:
    """Degrade one picture and restore it; return None for a photograph that is too small for the drawn settings."""
    scale = int(random.choice(_SCALES))
    hr, weight = _picture(random, photographs, int(random.choice(_SIDES)) // scale * scale)
    if hr is None:
        return None
    lr, error = _degraded(random, hr, scale)
    recorder = Recorder()
    restorer.trust = recorder  # type: ignore[assignment]
    image = restorer.restore(lr, scale, file_error=error).image
    restored = image.astype(np.float32) / 255
    enlarged, truth = restored.copy(), hr.astype(np.float32) / 255
    mix(lr.astype(np.float32) / 255, enlarged, 0.0, scale)
    plain, full, apart = (
        float(np.square(one - other, dtype=np.float64).mean()) + 1e-7
        for one, other in ((enlarged, truth), (restored, truth), (restored, enlarged))
    )
    if recorder.asked[FEATURES.index("refined")]:
        # The position of a shake's kernel, and so of the picture, cannot be detected and does not matter.
        here, best = psnr(image, hr, border=_BORDER), psnr_shifted(image, hr, border=_BORDER).psnr
        full *= 10 ** ((here - best) / 10)
    return recorder.asked, plain, 0.5 + (plain - full) / (2 * apart), apart, weight


def _picture(random: Random, photographs: list[Path], side: int) -> tuple[np.ndarray | None, float]:
    """Draw a picture; return it with its weight."""
    place = random.random()
    for draw, share in SHARES.items():
        if place < share:
            return draw(random, side), 1.0
        place -= share
    image = np.asarray(Image.open(photographs[random.integers(len(photographs))]).convert("RGB"))
    if random.random() < 0.5:  # smaller pictures are sharper
        factor = random.uniform(0.5, 1)
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    if min(image.shape[:2]) < side:
        return None, 0.0
    top, left = (int(random.integers(length - side + 1)) for length in image.shape[:2])
    cut = np.ascontiguousarray(image[top : top + side, left : left + side])
    if random.random() < _SOFT:
        return cv2.GaussianBlur(cut, (0, 0), random.uniform(0.8, 3)), _SOFT_WEIGHT
    return cut, 1.0


def _degraded(random: Random, hr: np.ndarray, scale: int) -> tuple[np.ndarray, float]:
    """Degrade a picture: maybe blur it, reduce it, maybe add noise, maybe store a JPEG. Return its file's error."""
    blurred, kind = hr.astype(np.float32), random.random()
    if kind < _BLURRED:
        kernel = sample_gaussian(1, 25, rng=random, sigma=(0.4, 3.5), sigma_law="log")[0]
        if kind < _MOTION:
            kernel = sample_motion(1, 25, rng=random)[0]
        elif kind < _MOTION + _DISK:
            kernel = sample_disk(1, 25, rng=random)[0]
        blurred = cv2.filter2D(blurred, -1, kernel, borderType=cv2.BORDER_REFLECT)
    size = hr.shape[1] // scale, hr.shape[0] // scale
    if random.random() < 1 / 3:
        small = cv2.resize(blurred, size, interpolation=cv2.INTER_AREA)
    else:
        by = Image.Resampling.BICUBIC if random.random() < 0.5 else Image.Resampling.LANCZOS
        small = np.stack(
            [np.asarray(Image.fromarray(plane).resize(size, by)) for plane in np.moveaxis(blurred, 2, 0)], 2
        )
    if random.random() < 0.35:
        small = small + random.uniform(0.5, 10) * random.standard_normal(small.shape)
    lr = small.clip(0, 255).round().astype(np.uint8)
    if random.random() < 0.35:
        file = io.BytesIO()
        Image.fromarray(lr).save(file, "JPEG", quality=int(random.integers(25, 99)))
        photograph = decode_photograph(file.getvalue())
        return photograph.pixels, photograph.file_error
    return lr, 0.0


def fit(seen: Cases, losses_count: float) -> dict[str, Tensor]:
    """Fit one set of nets to gain decibels; a mixture's error has a closed form for any w.

    Args:
        seen: training data.
        losses_count: weight of a lost decibel relative to a gained one.
    """
    mean, std = seen.features.mean(0), seen.features.std(0) + 1e-6
    x = torch.from_numpy(((seen.features - mean) / std).clip(-3, 3)).float()
    plain, right, apart, weight = (torch.from_numpy(np.asarray(column)).float() for column in seen[1:])
    nets = []
    with Progress("fit", total=_NETS, unit="net") as bar:
        for number in range(_NETS):
            torch.manual_seed(number)
            net = nn.Sequential(nn.Linear(len(mean), _HIDDEN), nn.GELU(), nn.Dropout(0.2), nn.Linear(_HIDDEN, 1))
            nn.init.zeros_(net[3].weight)
            nn.init.constant_(net[3].bias, 1.0)
            optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.03)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS)
            for _ in range(_EPOCHS):
                for rows in torch.randperm(len(x)).split(128):
                    w = net(x[rows])[:, 0].sigmoid()
                    gain = decibels(w, plain[rows], right[rows], apart[rows]).clamp(*_BOUNDS)
                    loss = (torch.where(gain > 0, -gain, -losses_count * gain) * weight[rows]).mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                schedule.step()
            nets.append(net.eval())
            bar.advance()
    return {
        "mean": torch.from_numpy(mean).float(),
        "std": torch.from_numpy(std).float(),
        "hidden": torch.stack([net[0].weight.detach().T for net in nets]).contiguous(),
        "hidden_bias": torch.stack([net[0].bias.detach() for net in nets]),
        "out": torch.stack([net[3].weight.detach()[0] for net in nets]),
        "out_bias": torch.stack([net[3].bias.detach()[0] for net in nets]),
    }


def decibels(w: Tensor, plain: Tensor, right: Tensor, apart: Tensor) -> Tensor:
    """Return the gain of a mixture over the enlargement, in dB.

    Args:
        w: share of the restoration.
        plain: mean squared error of the enlargement.
        right: the best w.
        apart: mean square of restored - enlarged.
    """
    error = (plain + apart * (w * w - 2 * w * right)).clamp_min(1e-7)
    return 10 * (plain.log10() - error.log10())


if __name__ == "__main__":
    main()

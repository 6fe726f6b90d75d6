"""The pyfunc that MLflow runs for a registered model: code next to safetensors and JSON, so nothing is unpickled.

Every version includes a copy of this file, so it is small and leaves all work to the installed package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext


class BlindSuperResolution(PythonModel):
    """Restore images (N, h, w, 3) uint8 RGB to (N, s*h, s*w, 3) uint8 RGB, each as `Restorer.restore` does."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model folder of the version.

        Raises:
            ArtefactError: a file is missing, or differs from the registered one.
        """
        from pipeline.inference import Restorer
        from pipeline.registry.package import check_version

        folder = Path(context.artifacts["model"])
        check_version(folder.parents[1])
        self.restorer = Restorer.load(folder)

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Restore a batch.

        Args:
            context: unused; `load_context` has loaded the model.
            model_input: (N, h, w, 3) uint8 RGB.
            params: `scale`; `sigma`, the noise level in [0, 1], estimated if negative; `kernel`, the k*k values of
                a known blur kernel row by row, estimated if empty.

        Raises:
            BadRequestError: the model does not support the scale or the kernel.
        """
        given = params or {}
        scale, sigma = int(given.get("scale", self.restorer.scales[0])), float(given.get("sigma", -1.0))
        kernel = _square(np.asarray(given.get("kernel", []), np.float32))
        level: float | Literal["auto"] = "auto" if sigma < 0 else sigma
        return np.stack([self.restorer.restore(image, scale, level, kernel).image for image in model_input])


def _square(values: np.ndarray) -> np.ndarray | None:
    from kernels_bank.runtime.errors import BadRequestError

    if values.size == 0:
        return None
    side = int(values.size**0.5)
    if side * side != values.size:
        raise BadRequestError(f"kernel: the k*k values of a square kernel are expected, got {values.size}")
    return values.reshape(side, side)


set_model(BlindSuperResolution())

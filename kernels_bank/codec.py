"""The kernel code: the standardised PCA of the bank, with a decoder that always returns a kernel.

encode: c = (P^T (vec k - m)) / s        m: (d,) the bank's mean kernel, row-major, d = size^2
decode: k = simplex(m + P (s * c))       P: (d, c) orthonormal columns; s: (c,) standard deviation of each code

If the bank holds composites, the decoder leaves out the simplex projection, which would cut off their negative lobes.

The mean is part of the codec: kernels sum to 1, so every column of P sums to 0 and P alone decodes to a kernel of
sum 0. After division by s, every component of the code has variance 1 over the bank, so an L1 loss gives each the same
weight instead of fitting only the first few. `standardize=False` keeps DAN's plain form (Luo et al., NeurIPS 2020):
s = 1, components in kernel units.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np

from kernels_bank.coding import decode_codes, encode_codes
from kernels_bank.runtime.errors import ArtefactError, BadRequestError

if TYPE_CHECKING:
    from torch import Tensor

    Array = TypeVar("Array", np.ndarray, Tensor)

SCHEMA = "1"
_KIND = "kernel-codec"
# A direction with less than this share of the first direction's variance is rounding error, not a property of kernels.
_NEGLIGIBLE = 1e-12
_MAX_SIDE = 99  # side of a kernel in pixels, as in `spec.py`
_MAX_HEADER = 1 << 16  # bytes; a codec's header has five entries


@dataclass(frozen=True, eq=False)
class KernelCodec:
    """Encode a bank's kernels by their PCA. Immutable; arrays are float32.

    Attributes:
        mean: (d,) mean kernel, row-major, d = size^2.
        basis: (d, c) orthonormal columns, largest variance first.
        std: (c,) divisor of each component: its standard deviation over the bank, or 1 (DAN's plain form).
        spectrum: (d,) variance of the bank along every principal direction, descending, float64.
        bank_digest: digest of the bank it was fitted to; empty if the kernels are not from a bank.
        signed: whether decoded kernels keep negative values, such as the lobes of a reduction.
    """

    MAX_BYTES: ClassVar[int] = 512 << 20  # largest file; all components of kernels of 99 pixels have 392 MB

    mean: np.ndarray
    basis: np.ndarray
    std: np.ndarray
    spectrum: np.ndarray
    bank_digest: str = ""
    signed: bool = False

    @property
    def size(self) -> int:
        """Return the kernel side."""
        return round(self.mean.shape[0] ** 0.5)

    @property
    def components(self) -> int:
        """Return the length of a code."""
        return int(self.basis.shape[1])

    @property
    def explained_variance(self) -> float:
        """Return the share of the bank's variance in the components, in [0, 1]."""
        total = float(self.spectrum.sum())
        return float(self.spectrum[: self.components].sum()) / total if total > 0 else 1.0

    @functools.cached_property
    def digest(self) -> str:
        """Return the hex SHA-256 of everything in the codec: a model trained with it must be used with it."""
        state = hashlib.sha256(f"{_KIND}/{SCHEMA}/{self.bank_digest}{'/signed' if self.signed else ''}".encode())
        for name, array in self._arrays().items():
            state.update(f"/{name}{array.shape}".encode())
            state.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return state.hexdigest()

    @classmethod
    def fit(
        cls,
        kernels: np.ndarray,
        components: int | None = None,
        explained_variance: float | None = None,
        *,
        standardize: bool = True,
        bank_digest: str = "",
        signed: bool = False,
    ) -> KernelCodec:
        """Fit the PCA to kernels in memory.

        Args:
            kernels: (N, k, k).
            components: length of the code; None to use `explained_variance`.
            explained_variance: share of the variance in (0, 1] to keep with as few components as possible. The default
                without `components` is 0.99. If both are given, the smaller length is used.
            standardize: whether to divide each component by its standard deviation.
            bank_digest: digest of the bank the kernels are from.
            signed: whether kernels have negative lobes, which decoding keeps.

        Raises:
            BadRequestError: there are no kernels, some are not finite, or settings are out of range.
        """
        kernels = np.asarray(kernels)
        if kernels.ndim != 3 or len(kernels) == 0 or kernels.shape[1] != kernels.shape[2]:
            raise BadRequestError(f"a codec needs kernels of shape (N, k, k) with N >= 1, got {kernels.shape}")
        flat = kernels.reshape(len(kernels), -1)
        blocks = [flat[i : i + 8192].astype(np.float64) for i in range(0, len(flat), 8192)]
        total = np.sum([block.sum(axis=0) for block in blocks], axis=0)
        outer = np.sum([block.T @ block for block in blocks], axis=0)
        return cls.from_moments(
            len(flat),
            total,
            outer,
            components,
            explained_variance,
            standardize=standardize,
            bank_digest=bank_digest,
            signed=signed,
        )

    @classmethod
    def from_moments(
        cls,
        count: int,
        total: np.ndarray,
        outer: np.ndarray,
        components: int | None = None,
        explained_variance: float | None = None,
        *,
        standardize: bool = True,
        bank_digest: str = "",
        signed: bool = False,
    ) -> KernelCodec:
        """Fit the PCA, as `fit` does, from sums that can be accumulated shard by shard.

        Args:
            count: number of kernels.
            total: (d,) float64, their sum.
            outer: (d, d) float64, the sum of their outer products.
            components: as in `fit`.
            explained_variance: as in `fit`.
            standardize: as in `fit`.
            bank_digest: as in `fit`.
            signed: as in `fit`.

        Raises:
            BadRequestError: settings out of range, or sums that are not finite.
        """
        d = total.shape[0]
        if not np.isfinite(total).all():
            raise BadRequestError("a codec needs finite kernels; some values are infinite or no numbers (NaN)")
        mean = total / count
        variances, vectors = np.linalg.eigh(outer / count - np.outer(mean, mean))
        spectrum, vectors = np.maximum(variances[::-1], 0), vectors[:, ::-1]
        kept = components_for(spectrum, components, explained_variance)
        basis = vectors[:, :kept]
        # The sign of an eigenvector is arbitrary. It is chosen so that a sum with more weight on early pixels is
        # positive. The rule works for symmetric and antisymmetric components, so the same kernels get the same codes.
        basis = np.where((1 / np.arange(1, d + 1)) @ basis < 0, -basis, basis)
        varies = spectrum[:kept] > _NEGLIGIBLE * spectrum[0]
        std = np.sqrt(np.where(varies & standardize, spectrum[:kept], 1.0))
        return cls(
            mean=mean.astype(np.float32),
            basis=np.ascontiguousarray(basis, dtype=np.float32),
            std=std.astype(np.float32),
            spectrum=np.ascontiguousarray(spectrum),
            bank_digest=bank_digest,
            signed=signed,
        )

    def truncated(self, components: int) -> KernelCodec:
        """Return the codec with only its first components, equal to a fit to the same bank with this length."""
        if not 1 <= components <= self.components:
            raise BadRequestError(f"components = {components}: this codec has {self.components}")
        return KernelCodec(
            mean=self.mean,
            basis=np.ascontiguousarray(self.basis[:, :components]),
            std=self.std[:components],
            spectrum=self.spectrum,
            bank_digest=self.bank_digest,
            signed=self.signed,
        )

    def encode(self, kernels: Array) -> Array:
        """Encode kernels (..., k, k) as codes (..., c); numpy or torch (any device; differentiable).

        Raises:
            BadRequestError: the side of the kernels differs from the codec's.
        """
        if kernels.ndim < 2 or tuple(kernels.shape[-2:]) != (self.size, self.size):
            raise BadRequestError(
                f"this codec encodes {self.size} x {self.size} kernels, got {tuple(kernels.shape)}; crop or pad them"
            )
        return encode_codes(kernels, *self._like(kernels))

    def decode(self, codes: Array) -> Array:
        """Decode codes (..., c) to kernels (..., k, k), each of sum 1, and >= 0 unless the codec is signed.

        Numpy or torch (any device; differentiable).

        Raises:
            BadRequestError: the length of the codes differs from the codec's.
        """
        if codes.ndim < 1 or codes.shape[-1] != self.components:
            raise BadRequestError(f"this codec has {self.components} components, got codes {tuple(codes.shape)}")
        return decode_codes(codes, *self._like(codes), self.size, signed=self.signed)

    def save(self, path: str | Path) -> None:
        """Write the codec to a path or URI as safetensors, atomically."""
        from kernels_bank.runtime import storage

        storage.write_bytes(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the content of the codec's file."""
        from safetensors.numpy import save

        about = {"schema": SCHEMA, "bank_digest": self.bank_digest, "digest": self.digest}
        if self.signed:
            about["signed"] = "true"
        # A single entry, because safetensors writes several in random order and equal codecs should give equal files.
        return bytes(save(self._arrays(), metadata={_KIND: json.dumps(about, sort_keys=True)}))

    @classmethod
    def load(cls, path: str | Path) -> KernelCodec:
        """Read a codec from a path or URI.

        Raises:
            ArtefactError: the file is missing, not a codec, of an unknown schema, or damaged.
        """
        from kernels_bank.runtime import storage

        return cls.from_bytes(storage.read_bytes(path, limit=cls.MAX_BYTES), str(path))

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> KernelCodec:
        """Parse the content of a codec's file; `where` names it in errors. Raises ArtefactError as `load` does."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            about = _about(data)
            arrays = load(data)
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ArtefactError(f"{where}: not a readable safetensors file ({error}); rebuild the bank") from error
        if about is None:
            raise ArtefactError(f"{where}: a safetensors file, but not a kernel codec")
        if about.get("schema") != SCHEMA:
            raise ArtefactError(
                f"{where}: codec schema {about.get('schema')!r:.40} is unknown to this version, which reads {SCHEMA!r}"
            )
        missing = {"mean", "basis", "std", "spectrum"} - arrays.keys()
        if missing:
            raise ArtefactError(f"{where}: the codec lacks {', '.join(sorted(missing))}")
        codec = cls(
            **{name: arrays[name] for name in ("mean", "basis", "std", "spectrum")},
            bank_digest=str(about.get("bank_digest", "")),
            signed=about.get("signed") == "true",
        )
        if problem := codec._problem():
            raise ArtefactError(f"{where}: not a kernel codec ({problem}); rebuild the bank")
        if codec.digest != about.get("digest"):
            raise ArtefactError(f"{where}: the codec's content does not match its digest; the file is damaged")
        return codec

    def _problem(self) -> str:
        """Return why the arrays are not a valid kernel code; empty if they are."""
        if self.mean.ndim != 1 or self.basis.ndim != 2:
            return "mean and basis have wrong dimensions"
        d, side, c = self.mean.shape[0], self.size, self.components
        if side**2 != d or side % 2 == 0 or side > _MAX_SIDE or not 1 <= c <= d:
            return f"{d} pixels and {c} components"
        if self.basis.shape != (d, c) or self.std.shape != (c,) or self.spectrum.shape != (d,):
            return "its arrays do not fit each other"
        for name, array in self._arrays().items():
            with np.errstate(over="ignore"):  # in float32, as used: large values become infinite, small ones 0
                used = array.astype(np.float32) if array.dtype.kind == "f" else None
            if used is None or not np.isfinite(used).all():
                return f"{name} is not finite"
        return "" if (self.std.astype(np.float32) > 0).all() else "std is not positive"

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"basis": self.basis, "mean": self.mean, "spectrum": self.spectrum, "std": self.std}

    def _like(self, values: Array) -> tuple[Array, Array, Array]:
        """Return mean, basis and std in the kind, dtype and device of `values`."""
        if isinstance(values, np.ndarray):
            dtype = np.float64 if values.dtype == np.float64 else np.float32
            return self.mean.astype(dtype), self.basis.astype(dtype), self.std.astype(dtype)
        import torch

        dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
        arrays = (self.mean, self.basis, self.std)
        mean, basis, std = (torch.as_tensor(a, dtype=dtype, device=values.device) for a in arrays)
        return mean, basis, std


def components_for(spectrum: np.ndarray, components: int | None, explained_variance: float | None) -> int:
    """Return the length of a code by the rule of `KernelCodec.fit`; at least 1.

    Raises:
        BadRequestError: settings out of range.
    """
    d = len(spectrum)
    if components is not None and not 1 <= components <= d:
        raise BadRequestError(f"components = {components}: choose between 1 and {d}, the number of kernel pixels")
    if explained_variance is not None and not 0 < explained_variance <= 1:
        raise BadRequestError(f"explained_variance = {explained_variance}: choose a share in (0, 1]")
    if explained_variance is None:
        if components is not None:
            return components
        explained_variance = 0.99
    cumulative = np.cumsum(spectrum)
    enough = int(np.searchsorted(cumulative, explained_variance * cumulative[-1] * (1 - 1e-12))) + 1
    return min(components or d, enough)


def _about(data: bytes) -> dict[str, str] | None:
    """Return the metadata of a codec's file, since safetensors' reader for bytes only returns tensors."""
    length = int.from_bytes(data[:8], "little")
    if length > _MAX_HEADER:
        raise ValueError("its header is too long")
    entry = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(_KIND)
    return None if entry is None else dict(json.loads(entry))

"""The contact sheet of `--check` replaces an earlier sheet, and no other file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kernels_bank.runtime.errors import BadRequestError
from pipeline.images import png
from pipeline.images.decode import decode_image
from pipeline.images.encode import encode_png
from pipeline.training.check import _SOFTWARE, _refuse_other_file


def test_only_a_sheet_is_replaced(tmp_path: Path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    sheet = tmp_path / "run-check.png"
    _refuse_other_file(sheet)
    sheet.write_bytes(png.with_text(encode_png(pixels), _SOFTWARE))
    np.testing.assert_array_equal(decode_image(sheet.read_bytes()), pixels)
    _refuse_other_file(sheet)
    for content in (encode_png(pixels), b"", b"text", png.with_text(encode_png(pixels), b"Software\0another")):
        sheet.write_bytes(content)
        with pytest.raises(BadRequestError, match="is no contact sheet of this program"):
            _refuse_other_file(sheet)
    sheet.unlink()
    sheet.mkdir()
    with pytest.raises(BadRequestError, match="is no contact sheet"):
        _refuse_other_file(sheet)

"""Read the shards and the bank of `train_on_your_folder.py` without this package, by plain webdataset and pandas.

python examples/read_shards_and_bank.py
"""

from pathlib import Path

import numpy as np
import pandas as pd
import webdataset

OUT = Path("examples-output")

tars = sorted(str(path) for path in (OUT / "shards").glob("train-*.tar"))
tiles = 0
for sample in webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"):
    tile, source = sample["png"], sample["json"]
    tiles += 1
print(f"{tiles} tiles in {len(tars)} tars; the last is {tile.shape} from {source['source']}")

bank = pd.concat(pd.read_parquet(path) for path in sorted((OUT / "bank").glob("*.parquet")))
kernels = np.stack(bank["kernel"]).reshape(len(bank), 25, 25)
print(bank.groupby("family").size().to_string())
print(f"kernels {kernels.shape}, sums {kernels.sum((1, 2)).min():.4f} ... {kernels.sum((1, 2)).max():.4f}")

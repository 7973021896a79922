"""``svhn_cropped``: Street View House Numbers, 73,257 training and 26,032 test images of digits.

They are 32x32, RGB (Y. Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature
Learning", 2011). Another 531,131 easier images are the split ``extra`` (``data.train_split:
train+extra``). Images are normalised by the channel statistics of those trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from gnpcli.data.archives.facts import Example
from gnpcli.data.archives.fetch import Archive
from gnpcli.data.archives.published import PublishedDataset

ADDRESS = "http://ufldl.stanford.edu/housenumbers/"
ARCHIVES = {
    "train": Archive(
        f"{ADDRESS}train_32x32.mat",
        182_040_794,
        "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    ),
    "test": Archive(
        f"{ADDRESS}test_32x32.mat",
        64_275_384,
        "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
    ),
    "extra": Archive(
        f"{ADDRESS}extra_32x32.mat",
        1_329_278_602,
        "a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3",
    ),
}


def _examples(split: str, paths: Mapping[str, str]) -> Iterator[Example]:
    """Yield the examples of a MATLAB file.

    It holds `X`, uint8 ``[32, 32, 3, N]``, and `y`, ``[N, 1]``, in which 10 means 0.
    """
    from scipy.io import loadmat

    content = loadmat(paths[ARCHIVES[split].filename], variable_names=["X", "y"])
    images, labels = content["X"], content["y"].ravel()
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
        raise ValueError(f"X is {images.dtype} {images.shape}")
    if labels.min(initial=1) < 1 or labels.max(initial=1) > 10:
        raise ValueError("y is not in 1 to 10")
    for index, label in enumerate((labels % 10).tolist()):
        yield {
            "image": np.ascontiguousarray(images[..., index]),
            "label": label,
            "id": f"{split}_{index:06d}",
        }


PUBLISHED = PublishedDataset(
    name="svhn_cropped",
    title="SVHN",
    class_names=tuple("0123456789"),
    image_size=32,
    channels=3,
    class_counts={
        "train": (4_948, 13_861, 10_585, 8_497, 7_458, 6_882, 5_727, 5_595, 5_045, 4_659),
        "test": (1_744, 5_099, 4_149, 2_882, 2_523, 2_384, 1_977, 2_019, 1_660, 1_595),
        "extra": (45_550, 90_560, 74_740, 60_765, 50_633, 53_490, 41_582, 43_997, 35_358, 34_456),
    },
    optional_splits=("extra",),
    archives={split: (archive,) for split, archive in ARCHIVES.items()},
    examples=_examples,
)
describe, load = PUBLISHED.describe, PUBLISHED.load

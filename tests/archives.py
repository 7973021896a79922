"""Small archives in the official layouts of the published data sets, the same images as TFDS itself
prepares them, and a server of files that counts and misbehaves."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from gnpcli.data.base import Dataset

Images = dict[str, tuple[np.ndarray, np.ndarray]]
"""By split: images, uint8 ``[N, H, W, C]``, and labels, int ``[N]``, in the order of the archives.
"""

CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}


def random_images(name: str, counts: dict[str, int], seed: int = 0) -> Images:
    random = np.random.default_rng(seed)
    shape = (28, 28, 1) if name == "fashion_mnist" else (32, 32, 3)
    classes = 100 if name == "cifar100" else 10
    return {
        split: (
            random.integers(0, 256, (count, *shape), dtype=np.uint8),
            random.permutation(np.arange(count) % classes),
        )
        for split, count in counts.items()
    }


def write_archives(name: str, images: Images, folder: Path) -> None:
    """Write the archives of the data set `name` as they are published, with `images` in place of
    the real ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    WRITERS[name](images, folder)


def _write_cifar(name: str, images: Images, folder: Path) -> None:
    members: dict[str, bytes] = {"readme.html": b"<html></html>"}
    for split, (pixels, labels) in images.items():
        columns = [
            labels.astype(np.uint8)[:, None],
            pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1),
        ]
        if name == "cifar100":
            columns.insert(0, (labels.astype(np.uint8) // 5)[:, None])
        records = np.concatenate(columns, axis=1)
        files = [f"{split}.bin"] if name == "cifar100" else ["test_batch.bin"]
        if name == "cifar10" and split == "train":
            files = [f"data_batch_{number}.bin" for number in range(1, 6)]
        members |= {
            file: part.tobytes()
            for file, part in zip(files, np.array_split(records, len(files)), strict=True)
        }
    with tarfile.open(
        folder / f"{name.replace('cifar', 'cifar-')}-binary.tar.gz", "w:gz"
    ) as archive:
        for file, content in sorted(
            members.items(), reverse=True
        ):  # in no order that anyone should rely on
            member = tarfile.TarInfo(f"{CIFAR_FOLDERS[name]}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _write_svhn(images: Images, folder: Path) -> None:
    from scipy.io import savemat

    for split, (pixels, labels) in images.items():
        content = {
            "X": pixels.transpose(1, 2, 3, 0),
            "y": np.where(labels == 0, 10, labels).astype(np.uint8)[:, None],
        }
        savemat(folder / f"{split}_32x32.mat", content, do_compression=True)


def _write_idx(images: Images, folder: Path) -> None:
    for split, (pixels, labels) in images.items():
        prefix = {"train": "train", "test": "t10k"}[split]
        for what, values in (
            ("images-idx3", pixels[..., 0]),
            ("labels-idx1", labels.astype(np.uint8)),
        ):
            header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            (folder / f"{prefix}-{what}-ubyte.gz").write_bytes(
                gzip.compress(header + values.tobytes())
            )


WRITERS: dict[str, Callable[[Images, Path], None]] = {
    "cifar10": partial(_write_cifar, "cifar10"),
    "cifar100": partial(_write_cifar, "cifar100"),
    "svhn_cropped": _write_svhn,
    "fashion_mnist": _write_idx,
}
"""What writes the archives of a data set, by its name."""


def write_tfds(
    data_dir: Path,
    images: Images,
    name: str = "cifar10",
    names: dict[str, tuple[str, ...]] | None = None,
) -> None:
    """Prepare `images` with the registered builder of `name`, where only the examples' origin is
    replaced.

    Args:
        data_dir: TFDS's.
        images: By split.
        name: TFDS's name.
        names: Names of classes by feature, where they come with the archives.
    """
    import tensorflow_datasets as tfds

    base = tfds.builder_cls(name)
    more = {
        "id": lambda split, index, label: f"{split}_{index:0{6 if name == 'svhn_cropped' else 5}d}",
        "coarse_label": lambda split, index, label: label // 5,
    }

    def split_generators(self, manager):
        del manager
        for feature, values in (names or {}).items():
            self.info.features[feature].names = list(values)
        extra = [key for key in self.info.features if key in more]

        def examples(split):
            for index, (image, label) in enumerate(zip(*images[split], strict=True)):
                # An image as array would be encoded with TensorFlow.
                example = {"image": Image.fromarray(np.squeeze(image)), "label": int(label)}
                yield index, example | {key: more[key](split, index, int(label)) for key in extra}

        return {split: examples(split) for split in images}

    members = {"name": name, "__module__": base.__module__, "_split_generators": split_generators}
    with tfds.core.registered.skip_registration():
        builder = type(base)(base.__name__, (base,), members)(
            data_dir=data_dir, file_format="array_record"
        )
    builder.download_and_prepare()


def write_own_tfds(
    data_dir: Path,
    name: str,
    splits: dict[str, list[dict[str, object]]],
    features: dict[str, object],
    config: str | None = None,
) -> Path:
    """Prepare a data set that TFDS does not know, of version 1.0.0; return its folder."""
    import tensorflow_datasets as tfds

    def info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def split_generators(self, manager):
        del self, manager
        return {split: iter(list(enumerate(examples))) for split, examples in splits.items()}

    members = {
        "name": name,
        "VERSION": tfds.core.Version("1.0.0"),
        "BUILDER_CONFIGS": [tfds.core.BuilderConfig(name=config)] if config is not None else [],
        "_info": info,
        "_split_generators": split_generators,
        "_generate_examples": lambda self: iter(()),
        "__module__": __name__,
    }
    with tfds.core.registered.skip_registration():
        cls = type(tfds.core.GeneratorBasedBuilder)(
            "Own", (tfds.core.GeneratorBasedBuilder,), members
        )
        cls.pkg_dir_path = data_dir
        builder = cls(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def write_sums(folder: Path, path: Path) -> Path:
    """Write the file that ``sha256sum *`` prints in `folder`."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    path.write_text(
        "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    )
    return path


class Server:
    """Files of a folder on 127.0.0.1.

    Attributes:
        url: Address of the folder.
        ranges: False answers every request with the whole file.
        cut: After how many bytes of a body the connection breaks, for each request in turn; None
            sends all.
        requests: (file name, first byte asked for) of each request.
        sent: Bytes of bodies sent, of all requests.
    """

    def __init__(self, folder: Path):
        self.folder, self.ranges, self.sent, self.url = folder, True, 0, ""
        self.cut: list[int | None] = []
        self.requests: list[tuple[str, int]] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = self.folder / handler.path.lstrip("/")
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.requests.append((path.name, start))
        if not path.is_file():
            return handler.send_error(404)
        content = path.read_bytes()
        if start > len(content) or (start and start == len(content) and self.ranges):
            return handler.send_error(416)
        start = start if self.ranges else 0
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(content) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.end_headers()
        limit = self.cut.pop(0) if self.cut else None
        body = content[start:] if limit is None else content[start : start + limit]
        self.sent += len(body)  # before the client can see the end of it
        handler.wfile.write(body)
        if limit is not None:
            handler.close_connection = True
        return None


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Serve `folder` from a thread inside the block."""
    server = Server(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *arguments: object) -> None:
            del arguments

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.handle_error = lambda request, address: None  # type: ignore
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(
        target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def as_pairs(images: np.ndarray, labels: Sequence[int] | np.ndarray) -> list[tuple[bytes, int]]:
    """Return images with their labels, sorted: TFDS shuffles as it writes."""
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


def check_images(data: Dataset, images: Images, train: tuple[str, ...] = ("train",)) -> None:
    """Assert that a data set holds these images of both splits, in any order."""
    assert data.test is not None
    want = [np.concatenate([images[split][part] for split in train]) for part in (0, 1)]
    assert as_pairs(data.train.images, data.train.labels) == as_pairs(*want)
    assert as_pairs(data.test.images, data.test.labels) == as_pairs(*images["test"])

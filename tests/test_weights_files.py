"""Reading files of tensors: the formats, and every way in which a file can be wrong."""

import os
import pickle
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from gnpcli.errors import CheckpointError
from gnpcli.weights.files import read_tensors
from tests.state_dicts import write_torch

TENSORS = {
    "block.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "block.bias": np.array([0.5, -2.0], np.float16),
    "steps": np.array(7, np.int64),
}


def same(read, wanted):
    assert read.keys() == wanted.keys()
    for name, array in wanted.items():
        assert read[name].dtype == array.dtype, name
        np.testing.assert_array_equal(read[name], array)


def test_safetensors(tmp_path):
    tensors = {**TENSORS, "narrow": np.array([1.5, -3.0], ml_dtypes.bfloat16)}
    save_file(tensors, tmp_path / "any.name")
    same(read_tensors(tmp_path / "any.name"), tensors)


@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_torch_zip(tmp_path, key, prefix):
    named = OrderedDict((prefix + name, array) for name, array in TENSORS.items())
    content = (
        named
        if key is None
        else {"epoch": 3, "optimizer": {"state": {0: np.ones(5, np.float32)}}, key: named}
    )
    write_torch(tmp_path / "w.pth", content)
    same(read_tensors(tmp_path / "w.pth"), TENSORS)


def test_torch_views(tmp_path):
    storage = np.arange(24, dtype=np.float32)
    views = {
        "transposed": storage[4:16].reshape(3, 4).T,
        "row": storage[20:22],
        "empty": storage[:0].reshape(0, 3),
    }
    write_torch(tmp_path / "w.pth", views)
    same(
        read_tensors(tmp_path / "w.pth"),
        {name: np.ascontiguousarray(view) for name, view in views.items()},
    )


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    write_torch(tmp_path / "w.pth", {"model": TENSORS, "args": Bomb(tmp_path / "made")})
    same(read_tensors(tmp_path / "w.pth"), TENSORS)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_cut_short(tmp_path, name, kept):
    path = tmp_path / name
    if name.endswith("pth"):
        write_torch(path, TENSORS)
    else:
        save_file(TENSORS, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match=r"cut short|neither a safetensors"):
        read_tensors(path)


def test_a_damaged_storage_is_noticed(tmp_path):
    write_torch(tmp_path / "w.pth", {"a": np.arange(1000, dtype=np.float32)})
    content = bytearray((tmp_path / "w.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="cut short: Bad CRC"):
        read_tensors(tmp_path / "w.pth")


def bare_pickle(path):
    path.write_bytes(pickle.dumps({"a": np.ones(3)}, protocol=2))


def plain_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def short_storage(path):
    write_torch(path, {"a": np.ones(4, np.float32)})
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["weights/data/0"] = parts["weights/data/0"][:8]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (
            bare_pickle,
            r"pytorch_model\.bin is a bare pickle, which may run any code.*convert it with `python "
            r"-c ",
        ),
        (plain_zip, r"a zip archive, but not a PyTorch checkpoint"),
        (short_storage, r"a tensor reaches beyond its storage"),
        (
            lambda path: write_torch(path, TENSORS, extra=[("weights/constants.pkl", "")]),
            r"a TorchScript program",
        ),
        (
            lambda path: write_torch(path, {"epoch": 3, "lr": 0.1}),
            r"no state dict.*it holds epoch, lr$",
        ),
        (
            lambda path: path.write_text("not weights"),
            r"neither a safetensors file nor a PyTorch checkpoint",
        ),
        (lambda path: save_file({}, path), r"holds no tensors"),
        (lambda path: None, r"cannot read .*: No such file"),
    ],
)
def test_other_files_are_refused(tmp_path, write, said):
    path = tmp_path / "pytorch_model.bin"
    write(path)
    with pytest.raises(CheckpointError, match=said):
        read_tensors(path)

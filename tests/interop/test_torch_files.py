"""The reader of torch's files. Oracle: torch itself where it is installed."""

from collections import OrderedDict
import io
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from prottrans_jax.interop import torch_files

FORMATS = {"zip": True, "before 1.6": False}


@pytest.fixture(params=FORMATS)
def save(request, tmp_path):
    torch = pytest.importorskip("torch")

    def save_and_name(content):
        path = tmp_path / "pytorch_model.bin"
        torch.save(content, path, _use_new_zipfile_serialization=FORMATS[request.param])
        return path

    return save_and_name


def to_numpy(tensor):
    torch = pytest.importorskip("torch")
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def assert_as_torch_reads(path):
    torch = pytest.importorskip("torch")
    theirs = torch.load(path, weights_only=True)
    ours = torch_files.load(path)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        expected = to_numpy(tensor)
        assert ours[name].dtype == expected.dtype, name
        assert ours[name].shape == expected.shape, name
        assert ours[name].tobytes() == expected.tobytes(), name
    return ours


def test_every_type_and_shape(save):
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    x = torch.randn(5, 3) * 50
    names = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool"
    tensors = {name: x.to(getattr(torch, name)) for name in names.split()}
    tensors |= {"scalar": torch.tensor(7.0), "empty": torch.zeros(0, 4)}
    assert_as_torch_reads(save(OrderedDict(tensors)))


def test_views_of_one_storage(save):
    torch = pytest.importorskip("torch")
    x = torch.arange(60.0).reshape(3, 4, 5)
    ours = assert_as_torch_reads(
        save(
            {
                "whole": x,
                "transposed": x.permute(2, 0, 1),
                "offset": x[1:, 2, ::2],
                "expanded": x[0, 0, :1].expand(4),
                "parameter": torch.nn.Parameter(x[2]),
            }
        )
    )
    assert np.shares_memory(ours["whole"], ours["parameter"])


def test_module_with_tied_weights_and_buffers(save):
    torch = pytest.importorskip("torch")
    torch.manual_seed(5)
    model = torch.nn.Sequential(
        torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7), torch.nn.BatchNorm1d(7)
    )
    model[1].weight = model[0].weight
    state = model.state_dict()
    assert state._metadata  # an attribute of the OrderedDict, set by the pickle
    assert_as_torch_reads(save(state))


def test_tensors_stay_in_the_file(save):
    torch = pytest.importorskip("torch")
    ours = torch_files.load(save({"x": torch.ones(3, 2)}))
    assert not ours["x"].flags.writeable
    base = ours["x"]
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


class Malicious:
    """Unpickled in the plain way it runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def write_zip(path, data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("form", FORMATS)
def test_a_crafted_file_runs_nothing(tmp_path, form):
    target = tmp_path / "written"
    text = pickle.dumps({"x": Malicious(target)}, protocol=2)
    # The pickle does what it is meant to, or the test would prove nothing.
    pickle.loads(text)
    assert target.exists()
    target.unlink()
    path = tmp_path / "pytorch_model.bin"
    if FORMATS[form]:
        write_zip(path, text)
    else:
        path.write_bytes(text)
    with pytest.raises(torch_files.UnsafeFileError, match=r"posix\.system.*not needed"):
        torch_files.load(path)
    assert not target.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "builtins getattr",
        "collections Counter",
        "torch load",
        "torch._utils _rebuild_device_tensor_from_numpy",
        "prottrans_jax.interop.torch_files pickle.loads",
    ],
)
def test_no_other_name_is_looked_up(tmp_path, name):
    path = tmp_path / "model.bin"
    module, attribute = name.split()
    write_zip(path, f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(torch_files.UnsafeFileError, match=attribute):
        torch_files.load(path)


@pytest.mark.parametrize(
    "text",
    [
        # An attribute of an admitted name is set; a stand-in for a class is called.
        b"ctorch._utils\n_rebuild_tensor_v2\n}X\x04\x00\x00\x00_callK\x01sb.",
        b"ctorch._utils\n_rebuild_tensor_v2\nN}X\x04\x00\x00\x00_callK\x01s\x86b.",
        b"ccollections\nOrderedDict\n}X\x05\x00\x00\x00clearK\x01sb.",
        b"ctorch\nFloatStorage\nK\x05\x85R.",
        # A tensor over no storage; an unknown kind of reference.
        b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00K\x01\x85K\x01\x85tR.",
        b"(X\x06\x00\x00\x00modulettQ.",
    ],
)
def test_admitted_names_cannot_be_misused(tmp_path, text):
    path = tmp_path / "model.bin"
    write_zip(path, text)
    with pytest.raises(ValueError, match=r"model\.bin"):
        torch_files.load(path)
    assert OrderedDict(a=1).clear() is None


def test_views_beyond_the_storage_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.bin"
    buffer = io.BytesIO()
    torch.save({"x": torch.arange(6.0)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                # The shape (6,) becomes (9,).
                assert data.count(b"K\x06\x85") == 1
                data = data.replace(b"K\x06\x85", b"K\x09\x85")
            target.writestr(name, data)
    with pytest.raises(ValueError, match="element 8 of a storage of 6"):
        torch_files.load(path)


def test_a_cut_off_file_is_named(save):
    torch = pytest.importorskip("torch")
    path = save({"x": torch.ones(300, 40)})
    path.write_bytes(path.read_bytes()[:-9000])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        torch_files.load(path)


def test_file_without_one_clear_state_dict_lists_its_keys(save):
    torch = pytest.importorskip("torch")
    path = save({"a": {"x": torch.ones(2)}, "b": {"x": torch.ones(2)}, "epoch": 3})
    with pytest.raises(ValueError, match=r"a \(dict\), b \(dict\), epoch \(int\)"):
        torch_files.load(path)
    tree = torch_files.load_tree(path)
    assert tree["epoch"] == 3
    assert np.array_equal(tree["a"]["x"], [1, 1])


def pickled_text(text):
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def pickled_dict(content):
    return b"}" + b"".join(pickled_text(k) + v + b"s" for k, v in content.items())


def write_checkpoint(path, content):
    """A file as torch writes it of pickled values; `TENSOR` is [1, 2]."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled_dict(content) + b".")
        archive.writestr("archive/data/0", np.array([1, 2], np.float32).tobytes())


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n(("
    + pickled_text("storage")
    + b"ctorch\nFloatStorage\n"
    + pickled_text("0")
    + pickled_text("cpu")
    + b"K\x02tQK\x00K\x02\x85K\x01\x85\x89}tR"
)


@pytest.mark.parametrize("key", ["state_dict", "module", "net"])
def test_a_checkpoints_only_state_dict_is_read_under_any_name(tmp_path, key):
    path = tmp_path / "model.bin"
    state = pickled_dict({"x": TENSOR})
    write_checkpoint(path, {"epoch": b"K\x03", key: state, "loss": TENSOR})
    assert torch_files.load(path)["x"].tolist() == [1, 2]


def test_two_state_dicts_under_unknown_keys_are_ambiguous(tmp_path):
    path = tmp_path / "model.bin"
    state = pickled_dict({"x": TENSOR})
    write_checkpoint(path, {"online": state, "target": state})
    with pytest.raises(ValueError, match=r"online \(dict\), target \(dict\)"):
        torch_files.load(path)


def test_real_heads_of_another_group_are_read(shared):
    torch = pytest.importorskip("torch")
    path = shared / "data" / "interop" / "heads" / "tmbed_cnn" / "cv_0.pt"
    ours = torch_files.load_tree(path)["model"]
    theirs = torch.load(path, weights_only=True)["model"]
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert np.array_equal(ours[name], tensor.numpy())


def zip_of(path, text, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", text)


def test_a_memo_index_beyond_the_file_is_refused(tmp_path):
    # `pickle` would allocate room for 2^32 objects.
    text = b"\x80\x02Nr\xff\xff\xff\x7f."
    zip_of(tmp_path / "zip.bin", text)
    (tmp_path / "legacy.bin").write_bytes(text)
    for name in ("zip.bin", "legacy.bin"):
        with pytest.raises(ValueError, match="LONG_BINPUT 2147483647 in a file of"):
            torch_files.load_tree(tmp_path / name)


def test_a_compressed_pickle_is_refused(tmp_path):
    zip_of(tmp_path / "x.bin", b"\x80\x02]" + b"N" * 10**6 + b".", zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"data.pkl is compressed"):
        torch_files.load_tree(tmp_path / "x.bin")


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    # _rebuild_tensor_v2(storage of 1 float, offset 0, shape, strides (0, 0))
    storage = (
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ"
    )
    shape = 2 * (b"J" + struct.pack("<i", 10**9)) + b"\x86"
    text = b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n(" + storage
    text += b"K\0" + shape + b"K\0K\0\x86tRs."
    path = tmp_path / "x.bin"
    zip_of(path, text)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(4))
    with pytest.raises(ValueError, match=r"a tensor of 10{18} elements over"):
        torch_files.load(path)

"""The owner of memory, and the border with other array libraries."""

from __future__ import annotations

import ctypes
import gc

import ml_dtypes
import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import _core

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint64",
          "uint32", "uint16", "uint8", "bool"]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_round_trip(device, dtype):
    numpy_dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    a = np.arange(24).reshape(2, 3, 4).astype(numpy_dtype)
    t = ek.from_numpy(a, device)
    assert (t.shape, t.dtype, t.nbytes) == ((2, 3, 4), numpy_dtype, a.nbytes)
    np.testing.assert_array_equal(t.numpy(), a)
    np.testing.assert_array_equal(np.asarray(t.to("cpu")), a)


def test_slices_and_reshapes_share_memory():
    t = ek.from_numpy(np.arange(24, dtype=np.float32).reshape(4, 6))
    t.numpy()[1, 2] = 100
    assert t[1, 2:4].numpy().tolist() == [100, 9]
    assert t[:, 2:4].shape == (4, 2)
    assert t[-1].numpy().tolist() == [18, 19, 20, 21, 22, 23]
    assert t.reshape(2, -1).shape == (2, 12)
    assert t[:, 2:4].to("cpu").numpy().tolist() == t.numpy()[:, 2:4].tolist()
    with pytest.raises(ek.ArgumentError, match="contiguous"):
        t[:, 2:4].reshape(8)
    with pytest.raises(ek.ArgumentError, match="expected 24 elements"):
        t.reshape(5, 5)
    with pytest.raises(IndexError, match="out of range"):
        t[4]
    with pytest.raises(IndexError, match="step"):
        t[::2]


def test_memory_is_aligned_and_released():
    gc.collect()
    before = _core.cpu_bytes_allocated()
    t = ek.empty((1000, 1000), "float32")
    small = ek.empty([3], np.int8)
    assert t.numpy().ctypes.data % 64 == 0
    assert small.numpy().ctypes.data % 64 == 0
    assert _core.cpu_bytes_allocated() - before == 4_000_003
    view = t[10:20].numpy()
    del t
    assert _core.cpu_bytes_allocated() - before == 4_000_003, "numpy keeps the storage alive"
    del view, small
    assert _core.cpu_bytes_allocated() == before


def test_impossible_sizes_are_refused():
    with pytest.raises(ek.ArgumentError, match="extents >= 0"):
        ek.empty((2, -1), "float32")
    with pytest.raises(ek.ArgumentError, match=r"fewer than 2\^63 bytes"):
        ek.empty((1 << 40, 1 << 40), "float32")
    with pytest.raises(ek.OutOfMemoryError, match="bytes"):
        ek.empty((1 << 46,), "float32")
    with pytest.raises(ek.ArgumentError, match="at most 6 dimensions"):
        ek.empty((1,) * 7, "float32")
    with pytest.raises(ek.ArgumentError, match="expected a numeric dtype"):
        ek.empty((1,), "float8")
    with pytest.raises(ek.ArgumentError, match="expected cpu, cuda or cuda:N, got 'tpu'"):
        ek.empty((1,), "float32", device="tpu")
    assert ek.empty((0, 1 << 40), "float32").shape == (0, 1 << 40)


def test_row_59_a_device_that_is_not_there():
    array = np.zeros(1, np.float32)
    for make in (
        lambda: ek.empty((1,), "float32", device="cuda:63"),
        lambda: ek.from_numpy(array, device="cuda:63"),
        lambda: ek.from_numpy(array).to("cuda:63"),
    ):
        with pytest.raises(ek.DeviceError, match="cuda:63"):
            make()
    assert np.array_equal(ek.from_numpy(array).numpy(), array)


class OnGpu:
    """Says that its memory lies on cuda:0."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.array = np.zeros(shape, np.float32)

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, **_):
        capsule = self.array.__dlpack__()
        pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
        pointer_of.restype, pointer_of.argtypes = (
            ctypes.c_void_p,
            [ctypes.py_object, ctypes.c_char_p],
        )
        # DLTensor begins with the address of the data; the type of the device follows.
        ctypes.c_int32.from_address(pointer_of(capsule, b"dltensor") + 8).value = 2
        return capsule


@pytest.mark.skipif(ek.device_count() > 0, reason="the machine has the GPU")
def test_row_59_a_tensor_of_a_gpu_that_cannot_be_used():
    x, weight, out = OnGpu((2, 8)), OnGpu((8,)), OnGpu((2, 8))
    for call in (
        lambda: ek.ops.rms_norm(x, weight),
        lambda: ek.ops.rms_norm(x, weight, out=out),
        lambda: ek.ops.linear(x, out),
        lambda: ek.ops.linear_pack(x),
        lambda: ek.from_numpy(x),
    ):
        with pytest.raises(ek.DeviceError):
            call()
    cpu = np.ones((2, 8), np.float32)
    assert np.isfinite(ek.ops.rms_norm(cpu, cpu[0]).numpy()).all()


@pytest.mark.cuda
def test_out_of_device_memory():
    with pytest.raises(ek.OutOfMemoryError, match=f"cuda:0: could not allocate {1 << 48} bytes"):
        ek.empty((1 << 46,), "float32", device="cuda")
    array = np.arange(5, dtype=np.float32)
    assert np.array_equal(ek.from_numpy(array, device="cuda").numpy(), array)


def test_strange_numpy_arrays_are_read_or_refused():
    reversed_rows = np.arange(6, dtype=np.float32).reshape(3, 2)[::-1]
    assert ek.from_numpy(reversed_rows).numpy().tolist() == reversed_rows.tolist()
    with pytest.raises(ek.ArgumentError, match="byte order"):
        ek.from_numpy(np.ones(3, dtype=">f4"))
    with pytest.raises(ek.ArgumentError, match="numeric dtype"):
        ek.from_numpy(np.array(["a"]))
    with pytest.raises(TypeError, match="got list"):
        ek.from_numpy([1, 2])
    record = np.zeros(4, dtype=np.dtype([("a", "f4"), ("b", "u1")], align=False))
    with pytest.raises(ek.ArgumentError, match="strides"):
        ek.from_numpy(record["a"])


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
def test_dlpack_export_to_numpy(dtype):
    t = ek.from_numpy(np.arange(12).reshape(3, 4).astype(dtype))
    shared = np.from_dlpack(t)
    t.numpy()[0, 0] = 42
    assert shared[0, 0] == 42
    del t
    gc.collect()
    assert shared[2, 3] == 11


@pytest.mark.oracle
def test_dlpack_with_torch():
    import torch

    source = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    t = ek.from_numpy(source)
    assert t.dtype == ml_dtypes.bfloat16
    back = torch.from_dlpack(t)
    assert torch.equal(back, source)
    out = torch.empty(3, 4)
    x, weight = torch.randn(3, 4), torch.ones(4)
    ek.ops.rms_norm(x, weight, out=out)
    with pytest.raises(ek.ArgumentError, match="got one of Tensor that cannot"):
        ek.ops.rms_norm(x.to_sparse(), weight)
    odd = torch.frombuffer(bytearray(17), dtype=torch.float32, offset=1).reshape(1, 4)
    with pytest.raises(ek.ArgumentError, match="aligned"):
        ek.ops.rms_norm(odd, weight)
    expected = torch.nn.functional.rms_norm(x, (4,), weight, 1e-5)
    assert torch.allclose(out, expected, atol=1e-6)


class Legacy:
    """A producer from before DLPack 1.0: no max_version."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self):
        return self.array.__dlpack__()


def test_dlpack_import_of_old_and_new_producers():
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert ek.from_numpy(Legacy(a)).numpy().tolist() == a.tolist()
    t = ek.from_numpy(a)

    class Wrapped:
        def __dlpack__(self, **kwargs):
            return t.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return t.__dlpack_device__()

    assert ek.from_numpy(Wrapped()).numpy().tolist() == a.tolist()


def test_dlpack_export_copies_when_asked():
    t = ek.from_numpy(np.zeros(3, np.float32))
    copied = np.from_dlpack(t, copy=True)
    copied[:] = 1
    assert t.numpy().tolist() == [0, 0, 0]
    with pytest.raises(BufferError, match="dl_device"):
        t.__dlpack__(dl_device=(2, 7))


def test_refused_dlpack_exports_release_their_memory():
    gc.collect()
    before = _core.cpu_bytes_allocated()
    t = ek.empty((1000,), "float32")
    with pytest.raises(TypeError):
        t.__dlpack__(max_version=("1", 0))
    del t
    assert _core.cpu_bytes_allocated() == before


class Unexportable:
    def __init__(self, error):
        self.error = error

    def __dlpack__(self, **_):
        raise self.error


def test_failed_dlpack_imports_are_errors_of_ours():
    with pytest.raises(ek.ArgumentError, match="got one of Unexportable that cannot"):
        ek.from_numpy(Unexportable(BufferError("theirs")))
    with pytest.raises(KeyboardInterrupt):
        ek.from_numpy(Unexportable(KeyboardInterrupt()))


def test_a_tensor_is_never_half_made():
    for cls in (ek.Tensor, type("Derived", (ek.Tensor,), {})):
        with pytest.raises(TypeError, match="use empty"):
            cls.__new__(cls)
        with pytest.raises(TypeError, match="use empty"):
            cls()


def test_wrong_indices_and_shapes_are_named():
    t = ek.empty((3, 2), "float32")
    assert t[np.int64(1)].shape == (2,)
    for key in (None, ..., 1.5, "a", [0]):
        with pytest.raises(TypeError):
            t[key]
    with pytest.raises(IndexError):
        t[1 << 70]
    for shape in ("a", 2.5, (1.5,), None):
        with pytest.raises(TypeError, match="reshape: shape: expected integers"):
            t.reshape(shape)


def test_empty_tensors_can_be_reshaped():
    t = ek.empty((3, 0, 2), "float32")
    assert t.is_contiguous()
    assert t.reshape(0, 6).shape == (0, 6)


def test_unprintable_names_are_escaped():
    strange = "a" + "\u00e9" * 60 + "\n"
    for call in (lambda: ek.empty((1,), strange), lambda: ek.empty((1,), "float32", strange)):
        with pytest.raises(ek.ArgumentError, match="got 'a") as caught:
            call()
        assert str(caught.value).isprintable()
        assert str(caught.value).isascii()
        assert len(str(caught.value)) <= 512
    with pytest.raises(ek.ArgumentError, match="lone surrogate"):
        ek.empty((1,), "\ud800")


def test_import_is_quick_and_touches_no_model_code():
    import subprocess
    import sys

    script = (
        "import sys, time; t = time.perf_counter(); import ernie_kernels;"
        "t = time.perf_counter() - t;"
        "heavy = {'torch', 'transformers', 'sentencepiece', 'jinja2'} & set(sys.modules);"
        "print(t); sys.exit(1 if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # The target is 0.2 s; a loaded machine gets room, an import of a model library does not.
    assert float(done.stdout) < 1.0


def test_a_tensor_that_cannot_be_read_is_reported_with_its_name():
    weight = np.ones(2, np.float32)
    for x, message in [
        (np.ones((1,) * 7, np.float32), "expected at most 6 dimensions, got 7"),
        (np.ones((2, 2), ">f4"), "expected native byte order"),
        (np.array([["a", "b"]]), "expected a numeric dtype such as"),
        (np.ones((2, 2), np.complex64), "expected a numeric dtype such as"),
    ]:
        with pytest.raises(ek.ArgumentError, match=f"^rms_norm: x: {message}"):
            ek.ops.rms_norm(x, weight)
        with pytest.raises(ek.ArgumentError, match=f"^rms_norm: out: {message}"):
            ek.ops.rms_norm(np.ones((2, 2), np.float32), weight, out=x)
        with pytest.raises(ek.ArgumentError, match=f"^from_numpy: array: {message}"):
            ek.from_numpy(x)


def test_public_functions_have_docstrings():
    for name in ek.__all__:
        thing = getattr(ek, name)
        if callable(thing):
            text = (thing.__doc__ or "").replace("\n", " ")
            # pybind11 puts the signature first; a docstring is what follows it.
            assert len(text.split("->")[-1].strip()) > 20, name

#!/usr/bin/env python3
"""Writes reference.safetensors with the reference implementation (pip install safetensors numpy; made with 0.8.0 and 2.4.6).

Element i of every tensor is i - 2 (u8: i), which tests/io/formats_test.cpp restates.
"""
import pathlib

import numpy as np
import safetensors

bf16 = (np.arange(6) - 2).astype("<f4").view("<u4") >> 16
arrays = {
    "f32": ("float32", np.arange(-2, 4).astype("<f4").reshape(2, 3)),
    "f64": ("float64", np.arange(-2, 4).astype("<f8")),
    "bf16": ("bfloat16", bf16.astype("<u2").reshape(3, 2)),
    "i64": ("int64", np.arange(-2, 4).astype("<i8").reshape(1, 6)),
    "i32": ("int32", np.arange(-2, 4).astype("<i4").reshape(6, 1)),
    "u8": ("uint8", np.arange(3).astype("u1")),
    "f16": ("float16", np.arange(-2, 0).astype("<f2")),
    "scalar": ("float32", np.array(-2).astype("<f4")),
    "empty": ("float32", np.zeros((0, 7), "<f4")),
    'name "with" quotes é': ("uint8", np.zeros(1, "u1")),
}
specs = {
    name: safetensors.TensorSpec(dtype=dtype, shape=a.shape, data_ptr=a.ctypes.data, data_len=a.nbytes)
    for name, (dtype, a) in arrays.items()
}
path = pathlib.Path(__file__).parent / "reference.safetensors"
path.write_bytes(safetensors.serialize(specs, metadata={"format": "pt", "note": "golden"}))

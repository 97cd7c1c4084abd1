"""Matrix products inside compiled code, by the same library that torch uses.

A numba loop that calls `np.dot` gets scipy's BLAS, which is a quarter slower here than the MKL inside torch's CPU builds.
Where torch's library exports Fortran's `sgemm`, that one is called by its address; elsewhere scipy's is.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numba
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import get_cython_function_address, intrinsic

from core.kernels.jit import JIT


@functools.cache
def sgemm_address() -> int:
    """Address of a Fortran `sgemm` with 32-bit sizes, for `product`'s first argument."""
    folder = Path(torch.__file__).parent / "lib"
    for library in folder.glob("libtorch_cpu.*"):
        try:
            # The library is loaded already: this only finds it.
            return ctypes.cast(ctypes.CDLL(str(library)).sgemm_, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):
            continue
    return get_cython_function_address("scipy.linalg.cython_blas", "sgemm")


@intrinsic
def _call(typing_context, address, trans_a, trans_b, m, n, k, a, lda, b, ldb, beta, c, ldc):
    """Fortran's sgemm with alpha = 1: letters and sizes as integers, arrays as addresses."""
    del typing_context, trans_a, trans_b, m, n, k, lda, ldb, ldc, a, b, c, address, beta
    signature = types.void(*([types.intp] * 10), types.float32, types.intp, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature
        address, trans_a, trans_b, m, n, k, a, lda, b, ldb, beta, c, ldc = arguments
        byte, int32, real = ir.IntType(8), ir.IntType(32), ir.FloatType()

        def held(value: Any, kind: Any) -> Any:
            value = builder.trunc(value, kind) if isinstance(kind, ir.IntType) else value
            slot = cgutils.alloca_once(builder, kind)
            builder.store(value, slot)
            return slot

        def pointer(value: Any) -> Any:
            return builder.inttoptr(value, real.as_pointer())

        one = ir.Constant(real, 1.0)
        passed = [
            held(trans_a, byte), held(trans_b, byte), held(m, int32), held(n, int32), held(k, int32), held(one, real),
            pointer(a), held(lda, int32), pointer(b), held(ldb, int32), held(beta, real), pointer(c), held(ldc, int32),
        ]  # fmt: skip
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in passed])
        builder.call(builder.inttoptr(address, kind.as_pointer()), passed)
        return context.get_dummy_value()

    return signature, generate


N, T = ord("N"), ord("T")


@numba.njit(**JIT)
def product(blas, left, right, rows, inner, columns, a, lda, b, ldb, beta, c, ldc):  # pragma: no cover (compiled)
    """c (rows, columns) = op(a) (rows, inner) @ op(b) (inner, columns) + beta c, all row by row in flat float32 memory.

    blas: `sgemm_address()`. left, right: T where a or b is stored transposed, else N. ld: numbers from row to row.
    """
    # Fortran reads what is stored row by row as its transpose: c^T = op(b)^T op(a)^T.
    _call(blas, right, left, columns, rows, inner, b.ctypes.data, ldb, a.ctypes.data, lda, beta, c.ctypes.data, ldc)  # pyright: ignore[reportCallIssue]

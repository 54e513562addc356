"""TensorData: an array on its way to or from the platform, and how other things become one.

Two dtypes travel, int64 and float32. Signed integers and floats become these, if nothing but float precision is lost;
bool and unsigned arrays are refused, because nothing says which of the two is meant. A plain list has no dtype, so the
name it is given under decides.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from tinker_client._readable import MOST_ITEMS

if TYPE_CHECKING:
    import torch

TensorDtype = Literal["int64", "float32"]

LIST_DTYPES: dict[str, TensorDtype] = {
    "target_tokens": "int64",
    "weights": "float32",
    "advantages": "float32",
    "logprobs": "float32",
    "mask": "float32",
    "sequence_ratio_mask": "float32",
    "clip_low_threshold": "float32",
    "clip_high_threshold": "float32",
}
"""What a plain list becomes, by the name of the loss function's input."""


class TensorData:
    """An n-dimensional array of int64 or float32; it never changes."""

    __slots__ = ("_array",)

    def __init__(self, data: Sequence[float], dtype: TensorDtype, shape: Sequence[int] | None = None) -> None:
        """Makes an array of a flat list.

        Args:
            data: the elements, row by row.
            dtype: "int64" or "float32".
            shape: size of each dimension; None: one dimension.

        Raises:
            ValueError: `dtype` is another one, `data` is not a flat list of numbers of that dtype, or does not fill
                `shape`.
        """
        if dtype not in ("int64", "float32"):
            raise ValueError(f"dtype: must be 'int64' or 'float32' (got {dtype!r})")
        array = _from_list(list(data), dtype)
        size = array.shape if shape is None else tuple(shape)
        if math.prod(size) != array.size or array.ndim != 1:
            raise ValueError(f"data: must be a flat list that fills shape {list(size)} (got shape {list(array.shape)})")
        self._array = _frozen(array.reshape(size))

    @classmethod
    def from_numpy(cls, array: npt.NDArray[Any]) -> TensorData:
        """Copies a numpy array: signed integers become int64, floats float32.

        Args:
            array: any shape.

        Raises:
            ValueError: the dtype is neither a signed integer nor a float, or a value is too large for float32.
        """
        tensor = cls.__new__(cls)
        tensor._array = _frozen(_from_array(array))
        return tensor

    @classmethod
    def from_torch(cls, tensor: torch.Tensor) -> TensorData:
        """Copies a torch tensor of any device: signed integers become int64, floats float32.

        Args:
            tensor: any shape, dense.

        Raises:
            ValueError: the tensor is sparse, or as `from_numpy`.
        """
        from tinker_client import _torch

        return cls.from_numpy(_torch.to_numpy(tensor))

    @classmethod
    def from_value(cls, name: str, value: object) -> TensorData:
        """Makes the array of one entry of `Datum.loss_fn_inputs`.

        Args:
            name: name of the loss input, which decides the dtype of a list (LIST_DTYPES).
            value: TensorData, numpy array, torch tensor, or a (nested) list of numbers.

        Raises:
            ValueError: the value cannot become an array, or is a list under a name that has no dtype; names the input.
        """
        try:
            if isinstance(value, TensorData):
                return value
            if isinstance(value, np.ndarray):
                return cls.from_numpy(value)
            if "torch" in sys.modules and _is_torch(value):
                return cls.from_torch(value)  # type: ignore[arg-type]
            if not isinstance(value, (list, tuple)):
                raise ValueError(f"must be TensorData, an array, a tensor or a list (got {type(value).__name__})")
            if name not in LIST_DTYPES:
                raise ValueError(
                    f"must be an array, because a list has no dtype, except for {', '.join(LIST_DTYPES)} (got list)"
                )
            return cls.from_numpy(_from_list(value, LIST_DTYPES[name]))
        except ValueError as error:
            raise ValueError(f'loss_fn_inputs["{name}"]: {error}') from None

    @property
    def data(self) -> list[Any]:
        """Elements, row by row, as Python numbers."""
        flat: list[Any] = self._array.ravel().tolist()
        return flat

    @property
    def dtype(self) -> TensorDtype:
        """Element type, "int64" or "float32"."""
        return "int64" if self._array.dtype == np.int64 else "float32"

    @property
    def shape(self) -> list[int]:
        """Size of each dimension."""
        return list(self._array.shape)

    def to_numpy(self) -> npt.NDArray[Any]:
        """Returns a new, writable array of the same dtype and shape."""
        return self._array.copy()

    def to_torch(self) -> torch.Tensor:
        """Returns a new tensor on the CPU, of the same dtype and shape."""
        from tinker_client import _torch

        return _torch.from_numpy(self.to_numpy())

    def tolist(self) -> Any:
        """Returns the elements as (nested) lists."""
        return self._array.tolist()

    def __len__(self) -> int:
        return len(self._array)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorData):
            return NotImplemented
        return self.dtype == other.dtype and np.array_equal(self._array, other._array)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = np.array2string(self._array, threshold=MOST_ITEMS, precision=4, separator=", ", max_line_width=200)
        return f"TensorData({' '.join(shown.split())}, dtype={self.dtype!r}, shape={self.shape})"


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array


def _is_torch(value: object) -> bool:
    from tinker_client import _torch

    return _torch.is_tensor(value)


def _from_array(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy as int64 or float32."""
    if array.dtype.kind == "i":
        return array.astype(np.int64)
    if array.dtype.kind != "f":
        raise ValueError(
            f"dtype: must be a signed integer or a float (got {array.dtype}); convert it to int64 or float32"
        )
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    if np.any(np.isinf(single) & np.isfinite(array)):
        raise ValueError("must be in the range of float32 (got a larger value)")
    return single


def _from_list(values: Sequence[Any], dtype: TensorDtype) -> npt.NDArray[Any]:
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError("must be rows of the same length (got a ragged list)") from None
    if array.size == 0:
        return array.astype(dtype)
    if array.dtype.kind not in "if" or (dtype == "int64" and array.dtype.kind != "i"):
        kind = "integers" if dtype == "int64" else "numbers"
        raise ValueError(f"must be a list of {kind} (got {array.dtype})")
    return _from_array(array.astype(dtype if array.dtype.kind == "i" else array.dtype))

"""What the checks of scan, convolution and step share: devices, the dtype of the arithmetic, and who is converted."""

import torch

Conversions = tuple[tuple[int, torch.dtype], ...]  # which of some tensors become which dtype


def check_device(name: str, tensor: torch.Tensor, **others: torch.Tensor | None) -> None:
    """Raise ValueError if tensors are not all on one device; kernels would read memory that is not theirs."""
    for other, x in others.items():
        if x is not None and x.device != tensor.device:
            raise ValueError(f"{other} is on {x.device}, {name} on {tensor.device}: move them to one device")


def arithmetic_dtype(*tensors: torch.Tensor | None) -> torch.dtype:
    """Return the dtype to compute in, the widest given but at least float32; TypeError if it is not floating."""
    given = [x.dtype for x in tensors if x is not None]
    dtype = given[0]
    for other in given[1:]:
        dtype = dtype if other == dtype else torch.promote_types(dtype, other)
    if not dtype.is_floating_point:
        raise TypeError(f"real floating-point tensors are needed, got a mix that promotes to {dtype}")
    return torch.float32 if dtype.itemsize < 4 else dtype


def conversions(tensors: tuple[torch.Tensor | None, ...], dtype: torch.dtype, rows: tuple[int, ...]) -> Conversions:
    """What becomes `dtype`: all that is not, but for those `rows` that the kernels widen themselves."""
    return tuple(
        (i, dtype)
        for i, x in enumerate(tensors)
        if x is not None and x.dtype != dtype and not (i in rows and dtype == torch.float32 and x.dtype.itemsize == 2)
    )

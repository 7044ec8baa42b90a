"""Engine of torch in half precision: a copy of a transformer whose weights are cast once, its output in float32."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn


class Float32Output(nn.Module):
    """A transformer whose output is brought to float32, for pooling and all after it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.config = inner.config

    def forward(self, **features: Any) -> Any:
        """As the transformer's, its floats in float32."""
        output = self.inner(**features)
        for name, value in output.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                output[name] = value.float()
        return output


class PackedLinear(nn.Module):
    """A linear layer in bf16 on a CPU by oneDNN, weights laid out once, by the operators of torch's own compiler.

    `nn.Linear` there first writes the bias to where the product goes, which takes long.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # No parameters: nothing is to cast, move or save a weight in a layout of oneDNN's own.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, rows: Tensor) -> Tensor:
        """(..., in_features) bf16 -> (..., out_features) bf16."""
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "none"))


def cast_copy(transformer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy for inference with parameters in `dtype`; the transformer is left as it is.

    Buffers keep their type: positions rotated by angles (RoPE) in half precision would lose their place.
    """
    inner = copy.deepcopy(transformer).eval().requires_grad_(False)
    for parameter in inner.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    on_cpu = all(parameter.device.type == "cpu" for parameter in inner.parameters())
    if on_cpu and dtype == torch.bfloat16 and _can_pack():
        _pack(inner)
    return Float32Output(inner)


def _can_pack() -> bool:
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    return all(hasattr(torch.ops.mkldnn, name) for name in names) and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _pack(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, PackedLinear(child))
        else:
            _pack(child)

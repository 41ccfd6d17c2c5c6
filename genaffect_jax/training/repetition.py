"""What a deterministic training step may consist of on GPUs.

Some operations add numbers in the order in which threads happen to finish, so that their results differ in the last
bits each time. A deterministic step that holds one of them is refused when it is traced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core
from jax.sharding import Mesh

from genaffect_jax.errors import ConfigError
from genaffect_jax.parallel.xla import is_deterministic, platform

_ATTENTION_GRADIENTS = ("dot_product_attention_bwd_wrapper", "dot_product_attention_bwd")
_ATOMIC = ("select_and_scatter", "select_and_scatter_add", "atomic_rmw", "atomic_cas")
_SCATTER_SUMS = ("scatter-add", "scatter-mul", "scatter-sub")
# Images as [B, H, W, C] and kernels as [H, W, in, out], as networks here apply convolutions. Gradients are convolutions
# with other orders.
_FORWARD = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def refuse_unrepeatable(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; when it is traced for GPUs inside `parallel.xla.deterministic`, its operations are checked.

    Raises:
        ConfigError: it holds operations whose results differ each time, or may; all are named. Raised by the returned
            function.
    """

    def checked(*arguments: Any) -> Any:
        if not is_deterministic() or platform() != "gpu":
            return function(*arguments)
        traced, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        found = unrepeatable(traced.jaxpr)
        if found:
            raise ConfigError(
                "on GPUs the following operations of the training step give, or may give, other bits each time: "
                f"{', '.join(f'{name} ({count})' for name, count in sorted(found.items()))}. "
                "Train on CPUs, or without the promise (False)",
                field="train.deterministic",
                found=True,
            )
        results = core.jaxpr_as_fun(traced)(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return checked


def unmeasured(mesh: Mesh) -> str | None:
    """What is known of no measurement about these devices, for people; None where repetition was measured."""
    kind = mesh.devices.flat[0].platform
    if kind not in ("cpu", "gpu"):
        return f"no training was repeated on {kind} devices: that they give the same bits each time was not measured"
    if kind == "gpu" and mesh.size > 1:
        return "sums over several GPUs are NCCL's: that they give the same bits each time was not measured"
    return None


def unrepeatable(jaxpr: core.Jaxpr) -> Counter[str]:
    """How often each kind of operation occurs whose results on GPUs differ each time, or may; kernels included.

    - Sums over indices that may be equal (the gradient of a gather) and gradients of maximum pooling use atomic
      operations.
    - cuDNN's attention sums its query gradient so, unless it is `kernels.deterministic_attention`.
    - cuDNN has algorithms for the gradients of convolutions that use atomic operations (its documentation, section
      Reproducibility); which one is taken is not known here.
    """
    return Counter(name for equation in _equations(jaxpr) if (name := _reason(equation)) is not None)


def _reason(equation: Any) -> str | None:
    name, params = equation.primitive.name, equation.params
    if name in _SCATTER_SUMS:
        # One index cannot be equal to another.
        several = equation.invars[1].aval.shape[:-1] not in ((), (1,))
        return f"{name} of indices that may be equal" if several and not params["unique_indices"] else None
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        forward = (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec) == _FORWARD
        return None if forward else "gradient of a convolution"
    if name in _ATTENTION_GRADIENTS:
        return "gradient of cuDNN's attention in its usual form"
    return name if name in _ATOMIC else None


def _equations(jaxpr: core.Jaxpr) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from _equations(inner)

"""The moving average of the anchor in one launch instead of one per tensor."""

from __future__ import annotations

import torch


@torch.no_grad()
def ema_update_(anchor: torch.nn.Module, policy: torch.nn.Module, mu: float) -> None:
    """Move the anchor towards the policy in place, as `algorithm.merge.ema_update_` does (line 9).

    Raises:
        ValueError: the anchor is not fp32 (in bf16 a step of mu = 0.01 rounds to nothing), or the two differ in
            parameters.
    """
    mine, theirs = list(anchor.parameters()), list(policy.parameters())
    if [value.shape for value in mine] != [value.shape for value in theirs]:
        raise ValueError(f"anchor and policy differ in parameters: {len(mine)} tensors against {len(theirs)}")
    low = [value.dtype for value in mine if value.dtype.itemsize < 4]
    if low:
        raise ValueError(f"the EMA anchor must be float32, a parameter is {low[0]}; call anchor.float()")
    targets = [new.to(old.dtype) for old, new in zip(mine, theirs, strict=True)]
    torch._foreach_lerp_(list[torch.Tensor](mine), targets, mu)

"""The outer loop of Algorithm 1: lines 1 to 3 and 10 to 14."""

from collections.abc import Callable, Sequence

from warp_nb.algorithm.merge import Weights, liti, merge


def algorithm_1(
    sft: Weights, run: Callable[[Weights, int, int], Weights], *, I: int, M: int, eta: float,
    merge: Callable[[Weights, Sequence[Weights]], Weights] = merge, seen: Callable[..., None] = lambda *iteration: None,
) -> tuple[Weights, Weights]:  # fmt: skip
    """Run WARP; return (theta_init after the last line 13, theta_slerp of the last iteration).

    `run(theta_init, i, m)` returns theta^m (lines 4 to 9); `eta` is that of line 13. After every iteration
    `seen(i, theta_init, [theta^1 ... theta^M], theta_slerp, next theta_init)` is called. theta_sft is not changed.
    """
    init = merged = sft  # line 1
    for i in range(1, I + 1):  # line 2
        start, policies = init, [run(init, i, m) for m in range(1, M + 1)]  # line 3; lines 4 to 9 are in run
        merged = merge(init, policies)  # line 12
        init = liti(init, merged, eta)  # line 13
        seen(i, start, policies, merged, init)
    return init, merged

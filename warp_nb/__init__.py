"""WARP (Weight Averaged Rewarded Policies, arXiv 2406.16768) for notebooks.

    from warp_nb import WarpConfig, evaluate, load_task, warp

    task = load_task("small")
    result = warp(WarpConfig(T=10, lr=1e-4, warmup_steps=0), task)
    found = evaluate(result.policy, task.policy, task, sampling=task.sampling(24))

The names below are imported when first used, so that `import warp_nb` costs nothing.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

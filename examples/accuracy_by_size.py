"""An accuracy function for `lutbuilder search`, to be replaced by your own.

    cd examples
    lutbuilder search proxyless ../luts/<device>/onnxruntime-fp32-bs1 --limit 6ms --accuracy accuracy_by_size:accuracy

A search asks it about a whole generation at once: it gets encodings, a row of value numbers a network, and gives one
figure each, higher is better. In your search that is a supernet's accuracy on a validation set, or a predictor fitted
to some; `SPACE.decode(arch)` says what a row stands for. This one is a stand-in: more arithmetic is better, with
diminishing returns, and so are larger kernels in later layers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lutbuilder.lower import lower
from lutbuilder.nas.compiled import FunctionTable, compile_space
from lutbuilder.spaces import get

SPACE = get("proxyless")
MACS = compile_space(SPACE, FunctionTable(name="macs", cost=lambda op: lower(op).macs / 1e6), "macs")
KERNELS = np.array([3, 3, 5, 5, 7, 7, 0])  # of k3e3 k3e6 k5e3 k5e6 k7e3 k7e6 zero


def accuracy(archs: NDArray[np.int16]) -> NDArray[np.float64]:
    """Return a stand-in for top-1 accuracy in percent, shape (N,), of networks (N, 21)."""
    kernels = KERNELS[archs] @ np.linspace(0.0, 1.0, archs.shape[1])
    return 77.0 - 9.0 * np.exp(-MACS.predict(archs) / 200.0) + 0.01 * kernels

"""What search code uses: a compiled table (numpy), `ExpectedLatency` (torch), losses and samplers.

Empty on purpose: importing the package loads neither numpy nor torch.
"""

from __future__ import annotations

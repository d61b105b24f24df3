"""Magnitude by the L1 norm, as filters are pruned by it (Li et al., arXiv:1608.08710)."""

from __future__ import annotations

from exporter.compress.criteria.magnitude import Magnitude

CRITERION = Magnitude(power=1)

"""Search under hard limits: what to look for is the user's, what it costs is the table's.

`search` evolves archs (OFA, APQ; by latency bucket AttentiveNAS, AlphaNet), `LatencySampler` draws them for supernet
training, `BitEnvironment` and `ChannelEnvironment` give an agent's actions their meaning (HAQ, AMC), `cross_entropy` is
a plain agent, `netadapt` shrinks a network step by step. No torch, no server: encodings in, encodings out.
"""

from __future__ import annotations

from lutbuilder.nas.search.crossentropy import CrossEntropy, cross_entropy
from lutbuilder.nas.search.environment import (
    BitEnvironment,
    ChannelEnvironment,
    Environment,
    amc_cost_reward,
    amc_reward,
    haq_reward,
    rollout,
)
from lutbuilder.nas.search.evolution import ByBucket, Evolution, SearchResult, search
from lutbuilder.nas.search.genes import Genome, genes_of, layer_genes
from lutbuilder.nas.search.limits import Limit, LimitNeverBinds, Limits
from lutbuilder.nas.search.loop import Progress
from lutbuilder.nas.search.netadapt import NetAdapt, Trajectory, netadapt
from lutbuilder.nas.search.sampler import LatencySampler
from lutbuilder.nas.search.scoring import Accuracy, Archive
from lutbuilder.nas.search.state import StateFile

__all__ = [
    "Accuracy",
    "Archive",
    "BitEnvironment",
    "ByBucket",
    "ChannelEnvironment",
    "CrossEntropy",
    "Environment",
    "Evolution",
    "Genome",
    "LatencySampler",
    "Limit",
    "LimitNeverBinds",
    "Limits",
    "NetAdapt",
    "Progress",
    "SearchResult",
    "StateFile",
    "Trajectory",
    "amc_cost_reward",
    "amc_reward",
    "cross_entropy",
    "genes_of",
    "haq_reward",
    "layer_genes",
    "netadapt",
    "rollout",
    "search",
]

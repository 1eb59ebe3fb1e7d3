"""Poolings of convolutional feature maps, by name.

create_pooling("dropcov", channels=128) -> nn.Cell, (N, 128, H, W) -> (N, cell.out_features)
"""

from __future__ import annotations

from covpool.pooling.cholesky import Cholesky
from covpool.pooling.covariance import CovariancePooling, GlobalAveragePooling
from covpool.pooling.distance import BDC
from covpool.pooling.dropcov import DropCov
from covpool.pooling.element_wise import BCNN, BCNNLT, LayerNormPooling, SigmE
from covpool.pooling.matrix_functions import APN, IBCNN, IBCNNLT, MPN, SEB, ILogM, LogM
from covpool.pooling.matrix_powers import FastMPN, MaxExp
from covpool.pooling.registry import PoolingInfo, create_pooling, list_poolings, pooling_info, register_pooling
from covpool.pooling.taylor import MTP
from covpool.registry import UnknownNameError

__all__ = [
    "PoolingInfo",
    "UnknownNameError",
    "create_pooling",
    "list_poolings",
    "pooling_info",
    "register_pooling",
]

# Rate factors: the rates that a search on Fashion-MNIST found, where they are far from 0.1, which suits the others
# (docs/measurements/evidence.md).
register_pooling("gap", GlobalAveragePooling, is_covariance=False)
register_pooling("gcp", CovariancePooling)
register_pooling("dropcov", DropCov)
register_pooling("fast_mpn", FastMPN)
register_pooling("bcnn", BCNN, rate_factor=10.0)
register_pooling("bcnn_lt", BCNNLT, rate_factor=3.0)
register_pooling("sigme", SigmE)
register_pooling("layernorm", LayerNormPooling, rate_factor=0.1)
register_pooling("logm", LogM, rate_factor=0.3)
register_pooling("ilogm", ILogM)
register_pooling("mpn", MPN)
register_pooling("apn", APN)
register_pooling("ibcnn", IBCNN, rate_factor=3.0)
register_pooling("ibcnn_lt", IBCNNLT, rate_factor=3.0)
register_pooling("maxexp", MaxExp)
register_pooling("bdc", BDC)
register_pooling("cholesky", Cholesky)
register_pooling("mtp", MTP)
register_pooling("seb", SEB)

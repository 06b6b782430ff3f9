"""Whether rankings are as they should be, seen from what is served: scores, orders, drift, and what users click."""

from tritonrank_gateway.quality.quality import Quality as Quality
from tritonrank_gateway.quality.reference import RankingKind as RankingKind

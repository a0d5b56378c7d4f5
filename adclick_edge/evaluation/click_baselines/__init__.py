"""Classical answers to clicks: the floor that a trained network must stay above, given the same clicks' robot."""

from adclick_edge.evaluation.click_baselines.feature_clicks import FeatureClicks, RefinedFeatureClicks
from adclick_edge.evaluation.click_baselines.grabcut import GrabCut

__all__ = ["FeatureClicks", "GrabCut", "RefinedFeatureClicks"]

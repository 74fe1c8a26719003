"""From a fitted network to anomaly maps, scores, thresholds and verdicts."""

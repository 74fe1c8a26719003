"""How well a detector works: metrics that stream, on data the detector never saw."""

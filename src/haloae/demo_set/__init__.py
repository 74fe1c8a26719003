"""The procedural data set of `haloae demo`: a woven cloth and a circuit board."""

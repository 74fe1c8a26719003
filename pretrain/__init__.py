"""How the bundled backbones were made: `python -m pretrain --help`. Not part of the package."""

"""Models that can be run block by block, with simplifications in place of their tensors."""

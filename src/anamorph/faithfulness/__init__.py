"""Faithfulness: how far a proxy agrees with its model, in and out of distribution.

`metrics` names what is compared at a position, `divergences` has the formulas, and `comparison`
takes them for many proxies in few passes. `sums` adds this up by sequence. From the sums,
`intervals` makes intervals and p-values, and `confidence` intervals at which one may stop early;
`estimates` has them for many cells, `contrasts` for the levels of a facet. `gaps` says what a gap
means, and `judging` corrects for how many there are. `measuring` goes through the cells of a split,
`tables` writes it all down, and `levels` breaks a gap down by a facet.
"""

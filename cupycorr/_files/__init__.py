"""Files of the command ``match``: frames are read, fields of displacements are written, and many pairs are worked off.

The modules, from the lowest to the highest: `page` (a picture as its file stores it), `pillow`, `tiff` and `npy` (one kind of
file each), `frames` (any kind), `pairs` (which frames are matched), `settings`, `results` (writing) and `job` (all pairs).
"""

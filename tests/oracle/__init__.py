# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A slow, plain float64 implementation of DAT and DAT++ to test against.

It is written from the papers in NumPy alone, shares no code with the
package, and prefers the obvious over the fast. Sources:

* DAT: Xia et al., "Vision Transformer with Deformable Attention",
  CVPR 2022, arXiv 2201.00520;
* DAT++: Xia et al., arXiv 2309.01430;

and, where the papers leave room, the behaviour of the authors' published
code, as seen in the outputs of their weights.

Every function works on the maps of one image, channels last, (H, W, C);
:func:`oracle.layout.per_image` wraps it for batches (B, C, H, W). Parameters
are dicts with the published names of that block.
"""

"""The correlations of other packages, under their own names: code written for them runs unchanged, with nothing to build.

.. code-block:: text

    neighbour                    the package it replaces                            import names that `install` registers
    ---------------------------  -------------------------------------------------  -----------------------------------------
    spatial_correlation_sampler  the C++ extension                                  spatial_correlation_sampler, and
                                                                                    spatial_correlation_sampler_backend
                                                                                    for copies of its Python half
    unfold_sampler               its re-implementation in PyTorch, by unfold        spatial_correlation_sampler
    mmcv                         OpenMMLab's mmcv.ops.Correlation                   mmcv.ops, or the missing part of it
    flownet2                     NVIDIA's correlation_package                       correlation_package, and correlation_cuda
                                                                                    for copies of its Python half
    pwcnet                       sniklaus' pytorch-pwc and pytorch-liteflownet      correlation
    tfa                          TensorFlow Addons' layers.optical_flow             tensorflow_addons
    mmtracker                    MM-Tracker's Correlation, over the C++ extension   those of the C++ extension

A neighbour is such a package, and each has an adapter, a module of this package. Code that can be edited imports the adapter:
``from cupycorr.compat.mmcv import Correlation``. For code that must stay as it is, there are `install` and the command

.. code-block:: text

    python -m cupycorr.compat run train.py --epochs 10
    python -m cupycorr.compat run --as flownet2 --as pwcnet -m package.train --epochs 10

which installs the named adapters, or those of all packages that are not installed, and runs the script. Importing this package
does not import torch.
"""

from ._install import install, installed, uninstall

__all__ = ["install", "installed", "uninstall"]

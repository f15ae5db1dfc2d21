"""Other packages' correlations under their own names: code written for them runs unchanged, with nothing to build.

.. code-block:: text

    neighbour                    adapter, and what it stands for                    import names that `install` registers
    ---------------------------  -------------------------------------------------  -----------------------------------------
    spatial_correlation_sampler  the C++ extension                                  spatial_correlation_sampler, and
                                                                                    spatial_correlation_sampler_backend
                                                                                    for copies of its Python half
    unfold_sampler               its re-implementation in PyTorch, by unfold        spatial_correlation_sampler
    mmcv                         OpenMMLab's mmcv.ops.Correlation                   mmcv.ops, or what is missing of it
    flownet2                     NVIDIA's correlation_package                       correlation_package, and correlation_cuda
                                                                                    for copies of its Python half
    pwcnet                       sniklaus' pytorch-pwc and pytorch-liteflownet      correlation
    tfa                          TensorFlow Addons' layers.optical_flow             tensorflow_addons
    mmtracker                    MM-Tracker's Correlation, over the C++ extension   those of the C++ extension

Each adapter is a module of this package, to be imported where one's own code is edited: ``from cupycorr.compat.mmcv import
Correlation``. `install` is for code that is not to be edited, and so is the command

.. code-block:: text

    python -m cupycorr.compat run train.py --epochs 10
    python -m cupycorr.compat run --as flownet2 --as pwcnet -m package.train --epochs 10

which installs what is named, or all that is not really there, and runs the script. Importing this package imports no torch.
"""

from ._install import install, installed, uninstall

__all__ = ["install", "installed", "uninstall"]

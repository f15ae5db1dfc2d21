"""The correlations of other packages, under their own names: code written for them runs unchanged, with nothing to build.

.. code-block:: text

    neighbour                    the package it replaces                            import names that `install` registers
    ===========================  =================================================  =========================================
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
    alt_cuda_corr                RAFT's compiled lookup                             alt_cuda_corr
    corr_sampler                 RAFT-Stereo's compiled lookup in a volume          corr_sampler
    cuda_corr                    DPVO's compiled lookup of edges, and of patches    cuda_corr
    droid_backends               DROID-SLAM's compiled correlation functions        droid_backends, or their part of it
    local_corr                   fused-local-corr, the lookup of RoMa               local_corr
    localcorr                    localcorr, of the author of ptlflow                localcorr
    sea_raft                     SEA-RAFT's corr.CorrBlock                          corr
    unimatch                     a function of UniMatch and GMFlow                  unimatch.matching, or its part of it

These are imported and not installed: `cupycorr.compat.torchvision.CorrBlock` is an argument of torchvision's models;
`cupycorr.compat.gwc` has the group-wise volume of GwcNet, ACVNet and IGEV-Stereo, a function in a file of each; and
`cupycorr.compat.mxnet` and `cupycorr.compat.paddle` have those frameworks' correlations, on torch tensors.

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

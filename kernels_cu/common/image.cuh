// Images (B, C, H, W) of any strides.
#pragma once
#include "common/numeric.cuh"

template <class Element>
struct Image {
    const Element* data;
    Index batch_stride, channel_stride, row_stride, column_stride;

    DEVICE const Element* at(Index b, Index c, Index y, Index x) const {
        return data + (b * batch_stride + c * channel_stride + y * row_stride + x * column_stride);
    }
};

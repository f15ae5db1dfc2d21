"""Hypothesis strategies for parts of problems."""

from hypothesis import strategies as st

from cupycorr._correlation.problem import Axis


@st.composite
def axes(draw):
    """Draw any axis of a problem that has an output."""
    kernel, patch, stride = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    padding, dilation, step = draw(st.integers(-3, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    offset, size2 = draw(st.integers(-9, 9)), draw(st.integers(1, 24))
    least = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
    return Axis(kernel, patch, stride, padding, dilation, step, offset, draw(st.integers(least, least + 20)), size2)

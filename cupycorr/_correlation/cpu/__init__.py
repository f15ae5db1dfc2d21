"""The fixed-grid operator on the CPU: plans of packed blocks, and the engines that multiply them."""

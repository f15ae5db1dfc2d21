"""The correlation on the CPU: plans of packed blocks, and the engines that sum their products."""

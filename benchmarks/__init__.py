"""The benchmark of cupycorr against its rivals: ``python -m benchmarks --device cpu``. Not part of the installed package."""

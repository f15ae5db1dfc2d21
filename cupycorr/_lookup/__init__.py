"""The lookup: correlation in a small window around given coordinates, in one map or in a pyramid of maps."""

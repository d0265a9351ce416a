"""Arrays in, arrays out: rounding methods, ranges, packing. No files, no graphs, no torch."""

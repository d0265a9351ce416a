"""Modules of torch: opened from files, described, counted, run; written as programs and folders."""

"""Preparing images: grey window, median and bilateral filters, resampling to cubic voxels and back."""

"""Reading acquisitions and judging them: stacks of sections, voxel sizes from vendor metadata, quality control."""

"""Organelles of one cell: the sectionwise U-Net, its training, and inference from three directions."""

"""Services that a laboratory runs for itself: on one machine, and as files for clusters."""

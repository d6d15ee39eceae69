"""Programs that run in the containers of ``compose`` and ``kubernetes``."""

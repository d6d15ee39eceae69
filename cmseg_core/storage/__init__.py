"""Artifact store, stage outputs, OME-Zarr and the manifest: the one place that knows boto3, obstore and zarr."""

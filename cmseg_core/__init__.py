"""The science of cmseg: arrays in, arrays out.

Nothing here knows an orchestrator, a tracking server or a cloud client, except
:mod:`cmseg_core.storage` and :mod:`cmseg_core.tracking`, each the one place that does.
"""

from importlib.metadata import version

__version__ = version("cmseg")

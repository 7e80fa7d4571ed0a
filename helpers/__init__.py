"""Helpers shared by the notebooks: one module, one job.

The road of the data, in the order of the notebooks:

``corpora``/``iemocap`` → ``audio`` → ``features``, ``spectrograms`` → ``splits``, ``audit`` →
``nets``/``training``, ``estimators`` (both through ``experiment``) → ``metrics``, ``ensemble``, ``explain`` →
``plots``, ``pipeline`` (with ``mirror``).
``paths``, ``tables`` and ``cache`` are the ground all of them stand on.
"""

import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # other packages' wish for widgets: progress here is text

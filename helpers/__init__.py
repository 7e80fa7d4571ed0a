"""Helpers shared by the notebooks: one module, one job.

The road of the data, in the order of the notebooks:

``corpora``/``iemocap`` → ``audio`` → ``features``, ``spectrograms`` → ``splits``, ``audit`` →
``nets``/``training``, ``estimators`` (both through ``experiment``) → ``metrics``, ``ensemble``, ``explain`` →
``plots``, ``pipeline`` (with ``mirror``).
``paths``, ``tables`` and ``cache`` are the ground all of them stand on.
"""

import os
import warnings

# On processors with AMX, the oneDNN of torch 2.12 computes some convolutions of few channels or pixels in bfloat16 wrongly, up
# to NaN; without AMX they are right. It is read when torch first computes, so torch may be imported before.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
# Arrow's usual pool keeps what is freed, tens of megabytes once a small table was read. It is read when pandas is imported:
# import this package first, as notebooks do.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
os.environ.setdefault(
    "ORT_DISABLE_TELEMETRY", "1"
)  # onnxruntime would tell others of its use: nothing here does
warnings.filterwarnings(
    "ignore", message="A worker stopped while some jobs"
)  # joblib replaces workers that have grown
warnings.filterwarnings(
    "ignore", message="IProgress not found"
)  # other packages' wish for widgets: progress here is text

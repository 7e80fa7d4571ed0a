"""Helpers shared by the notebooks: one module, one job (see ``README.md`` in this folder)."""

import os
import warnings

# On processors with AMX, the oneDNN of torch 2.12 computes some convolutions of few channels or
# pixels in bfloat16 wrongly, up to NaN. It is read when torch first computes.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
# Arrow's usual pool keeps what is freed. It is read when pandas is imported: import this first.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
warnings.filterwarnings("ignore", message="A worker stopped while some jobs")  # it has grown
warnings.filterwarnings("ignore", message="IProgress not found")  # progress here is text

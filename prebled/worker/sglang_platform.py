"""SGLang on a CPU that it has no kernels for: plain torch operations, on any machine.

SGLang's own CPU engine needs `sgl_kernel` built from its repository. This platform takes the paths that SGLang has for
devices without Triton instead; scheduler, radix cache and chunked prefill are the same code as on a GPU.
"""

from __future__ import annotations

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform


class CpuPlatform(CpuDeviceMixin, SRTPlatform):  # type: ignore[misc]  # mypy does not look into SGLang
    """Not PlatformEnum.CPU: that would make SGLang import `sgl_kernel`."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    capabilities = PlatformCapabilities()

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def is_pin_memory_available(self, device: torch.device | None = None) -> bool:
        return False

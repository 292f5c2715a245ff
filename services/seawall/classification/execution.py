"""Where and how onnxruntime runs a model: the provider, its threads, its batches."""

from __future__ import annotations

from typing import Any, Final, Literal

import onnxruntime
from pydantic import Field

from seawall.core.errors import Fatal
from seawall.runtime.settings import Group
from seawall.runtime.workers import HELD

Provider = Literal["cpu", "cuda", "tensorrt", "openvino"]

#: By setting: onnxruntime's name, and the package that brings it.
_PROVIDERS: Final[dict[str, tuple[str, str]]] = {
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
}
#: Pictures of one inference, at most: on a CPU what one thread holds, elsewhere what several bring.
_CPU_BATCH: Final = HELD
_ACCELERATOR_BATCH: Final = 32


class ExecutionSettings(Group):
    """How models are run. The defaults are right for CPUs."""

    # An accelerator needs its own build of onnxruntime; one that is named but cannot run is an error, never a fallback.
    provider: Provider = "cpu"
    # Options handed to the provider as they are (device_id, trt_engine_cache_path, …): see onnxruntime's names.
    provider_options: dict[str, str] = Field(default_factory=dict)
    # Threads of one inference. The workers are as many as the CPUs of the container's quota, each with an inference of
    # its own: more threads make a lone call faster and cost up to 40 % more CPU for each picture.
    intra_op_threads: int = Field(default=1, ge=1, le=256)
    # Pictures of one inference, at most. 0: 4 on a CPU, 32 elsewhere. Only what is there already is put together: an
    # idle service answers one picture at once.
    max_batch: int = Field(default=0, ge=0, le=1024)
    # How long a batch that is not full waits for more. 0: not at all; batches grow with the load all the same.
    batch_wait_seconds: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)

    @property
    def batch(self) -> int:
        """Pictures of one inference, at most."""
        return self.max_batch or (_CPU_BATCH if self.provider == "cpu" else _ACCELERATOR_BATCH)

    def runs(self, workers: int) -> int:
        """Inferences at a time: on a CPU each worker runs its own, an accelerator takes one after the other."""
        return workers if self.provider == "cpu" else 1


def session(data: bytes, folder: str, settings: ExecutionSettings) -> onnxruntime.InferenceSession:
    """A session of a verified model.

    Args:
        data: the model's bytes.
        folder: where its external tensor data are, all of them listed in its card.

    Raises:
        Fatal: ``PROVIDER_UNAVAILABLE``. onnxruntime's own errors where it cannot run the model.
    """
    name, package = _PROVIDERS[settings.provider]
    if name not in onnxruntime.get_available_providers():
        detail = f"execution.provider: this onnxruntime has no {settings.provider}"
        raise Fatal("PROVIDER_UNAVAILABLE", f"{detail}: install {package}, or set cpu")
    made = onnxruntime.InferenceSession(
        data,
        options(folder, settings.intra_op_threads),
        providers=[(name, dict(settings.provider_options))],
    )
    # onnxruntime goes on with the CPU when a provider cannot start (no driver, no device).
    if made.get_providers()[0] != name:
        detail = f"execution.provider: {settings.provider} is installed but did not start"
        raise Fatal("PROVIDER_UNAVAILABLE", f"{detail}: check its driver and device, or set cpu")
    return made


def options(folder: str, threads: int) -> Any:
    """onnxruntime's session options.

    Calls come from the service's worker threads, so parallelism is theirs, and waiting threads do not spin. Working
    memory is kept: a model's input has one size, so it is what the runs at one time need, in one place.
    """
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.inter_op_num_threads = 1
    chosen.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    chosen.enable_cpu_mem_arena = True
    chosen.enable_mem_pattern = False
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
    chosen.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # The model is handed over as verified bytes; tensor data beside it is found here.
    chosen.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    # Errors come back as exceptions; the runtime's own log lines go around ours.
    chosen.log_severity_level = 4
    return chosen

"""The process that runs one of SGLang's schedulers: `python -m prebled.worker.sglang_child SPEC`.

One such process per tensor-parallel rank, as SGLang itself has it; rank 0 talks to the worker over SGLang's own ZeroMQ
sockets. What must happen before SGLang is imported happens here: dying with the worker, the stand-ins, the choice of
device. The worker's own process never imports SGLang or torch: it stays small, beats while a model loads, and learns
from `ChildReady` how SGLang lays out the messages that they exchange.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from typing import Any

import msgspec
import zmq

from prebled.worker import sglang_standins
from prebled.worker.sglang_steps import METER

CPU_DEFAULTS: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "disable_overlap_schedule": True,
    "chunked_prefill_size": 2048,
    "max_total_tokens": 65536,
    "max_running_requests": 64,
}


class SchedulerSpec(msgspec.Struct, frozen=True):
    """All that a child is told. Addresses are ZeroMQ's. `device` is `auto`, `cpu` or `cuda`; `server_args` are SGLang's
    own, by name."""

    rank: int
    parent_pid: int
    device: str
    server_args: dict[str, Any]
    requests: str
    outputs: str
    loads: str
    rpc: str
    nccl_port: int


class Layout(msgspec.Struct, frozen=True):
    """How SGLang encodes one message: an array of the tag and the fields, in this order. `template` is an encoded
    instance whose fields hold SGLang's defaults."""

    fields: tuple[str, ...]
    template: bytes = b""


class ChildReady(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A scheduler serves. Rank 0 adds the layouts of the messages, by the names SGLang gives them."""

    rank: int
    device: str
    kv_tokens: int
    max_input_tokens: int  # an input must be shorter than this
    vocab_size: int
    layouts: dict[str, Layout]


class ChildFailed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A child gave up before a scheduler existed."""

    rank: int
    message: str


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the worker dies. SGLang does so too, but only after its imports, seconds later;
    a worker that died before the call is noticed by its changed pid."""
    set_parent_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def main(argument: str) -> int:
    spec = msgspec.json.decode(argument, type=SchedulerSpec)
    die_with_parent(spec.parent_pid)
    with zmq.Context() as context, context.socket(zmq.PUSH) as report:
        report.linger = 1000
        report.connect(spec.outputs)
        try:
            _run(spec, report)
        except Exception as error:  # whatever SGLang raises over bad arguments or a model it cannot read
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}"
            report.send(msgspec.msgpack.encode(ChildFailed(spec.rank, message)))
            return 1
    return 0


def _run(spec: SchedulerSpec, report: zmq.Socket[bytes]) -> None:
    device = _prepare_device(spec.device)
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.managers.scheduler import run_scheduler_process
    from sglang.srt.server_args import ServerArgs

    server_args = ServerArgs(**({**CPU_DEFAULTS, **spec.server_args} if device == "cpu" else spec.server_args))
    server_args.resolve_once()
    server_args.check_server_args()
    if device != "cpu":
        from sglang.srt.entrypoints.engine import _set_envs_and_config

        _set_envs_and_config(server_args)  # NCCL and CUDA variables, limits: what SGLang's own launcher sets
    ready = _ReadyReport(spec, report, device, int(ModelConfig.from_server_args(server_args).vocab_size))
    gpu_id = server_args.base_gpu_id + spec.rank * server_args.gpu_id_step
    if spec.rank == 0:
        METER.report_to(lambda frame: _send_or_drop(report, frame), is_result_at_hand=device == "cpu")
    run_scheduler_process(server_args, _port_args(spec), gpu_id, spec.rank, 0, None, ready)


def _send_or_drop(report: zmq.Socket[bytes], frame: bytes) -> None:
    """A worker that does not read must not hold up the scheduler for the sake of a measurement."""
    with contextlib.suppress(zmq.Again):
        report.send(frame, zmq.NOBLOCK)


def _prepare_device(wanted: str) -> str:
    """Install the stand-ins and settle on a device, before SGLang is imported. Raises RuntimeError where there is no
    GPU and one was asked for."""
    if wanted == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sglang_standins.install()
    import torch

    if wanted != "cpu" and torch.accelerator.is_available():
        return str(torch.accelerator.current_accelerator())
    if wanted == "cuda":
        raise RuntimeError("device cuda was asked for, but no GPU is visible")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # compiling needs a C++ compiler, and gains nothing here
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # more would fight over the cores: several workers share a host
    return "cpu"


def _port_args(spec: SchedulerSpec) -> Any:
    from sglang.srt.server_args import PortArgs

    return PortArgs(
        tokenizer_ipc_name=spec.outputs,
        scheduler_input_ipc_name=spec.requests,
        detokenizer_ipc_name=spec.outputs,
        nccl_port=spec.nccl_port,
        rpc_ipc_name=spec.rpc,
        metrics_ipc_name=spec.rpc,  # connected only with enable_metrics, whose numbers go another way
        tokenizer_worker_ipc_name=None,
        decoupled_spec_ipc_config=None,
        load_collector_ipc_name=spec.loads,
        instance_id=f"prebled-{spec.parent_pid}",
    )


class _ReadyReport:
    """Stands where SGLang expects the pipe to its launcher: `send` is called once, when the scheduler is built."""

    def __init__(self, spec: SchedulerSpec, report: zmq.Socket[bytes], device: str, vocab_size: int) -> None:
        self._spec = spec
        self._report = report
        self._device = device
        self._vocab_size = vocab_size

    def send(self, info: dict[str, Any]) -> None:
        ready = ChildReady(
            rank=self._spec.rank,
            device=self._device,
            kv_tokens=int(info["max_total_num_tokens"]),
            max_input_tokens=int(info["max_req_input_len"]),
            vocab_size=self._vocab_size,
            layouts=_layouts() if self._spec.rank == 0 else {},
        )
        self._report.send(msgspec.msgpack.encode(ready))


def _layouts() -> dict[str, Layout]:
    from array import array

    from sglang.srt.managers import io_struct
    from sglang.srt.sampling.sampling_params import SamplingParams

    sampling = SamplingParams()
    sampling.normalize(None)
    generate = io_struct.TokenizedGenerateReqInput(
        input_text=None,
        input_ids=array("q"),
        input_embeds=None,
        mm_inputs=None,
        token_type_ids=None,
        sampling_params=sampling,
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=True,
    )
    samples = [sampling, generate, io_struct.BatchTokenizedGenerateReqInput(batch=[]), io_struct.AbortReq()]
    layouts = {
        type(sample).__name__: Layout(type(sample).__struct_fields__, io_struct.msgpack_encode(sample))
        for sample in samples
    }
    layouts["BatchTokenIDOutput"] = Layout(io_struct.BatchTokenIDOutput.__struct_fields__)
    return layouts


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

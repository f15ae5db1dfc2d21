"""Two processes that train replicas of a network by torch's DistributedDataParallel."""

import json
import subprocess
import sys
from pathlib import Path

from waiting import STUCK

import cupycorr

WORKER = """
import json, sys
import torch
import torch.distributed as dist

rank, meeting = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
torch.manual_seed(0)

exec(sys.argv[3])
net = Net()
a, b = torch.randn(2, 4, 3, 9, 10)
wrapped = torch.nn.parallel.DistributedDataParallel(net)
mine = slice(2 * rank, 2 * rank + 2)
wrapped(a[mine], b[mine]).square().mean().backward()
got = [p.grad.clone() for p in net.parameters()]
net.zero_grad()
net(a, b).square().mean().backward()
print(json.dumps([float((g - p.grad).abs().max() / p.grad.abs().max()) for g, p in zip(got, net.parameters())]))
dist.destroy_process_group()
"""


def errors_of_gradients(net, folder):
    """Return, for each parameter and process, how far its gradient is from that of the whole batch in one process, relatively.

    ``net`` is the source of a class ``Net`` that takes two batches of frames of 3 channels.
    """
    words = [sys.executable, "-c", WORKER]
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(cupycorr.__file__).resolve().parents[1])
    started = [subprocess.Popen([*words, str(rank), str(folder / "meeting"), net], **options) for rank in range(2)]
    errors = []
    for process in started:
        out, said = process.communicate(timeout=STUCK)
        assert process.returncode == 0, said
        errors += json.loads(out)
    return errors
